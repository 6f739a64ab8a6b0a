r"""Replacement for RecoE2E's configuration: honours inputFiles, maxEvents and EGModelName.

    cmsRun RecoE2E/EGTagger/python/EGInference_cfg.py \
        inputFiles=file:SIM_DoubleGammaPt50_Pythia8_1000Ev.root maxEvents=-1 EGModelName=sample.onnx

The model is a file in RecoE2E/tfModels. Frames are made by RecoE2E's own DetFrames and EGFrames.
Writes resources.json (FastTimerService) and outputFile (photons and EGProbs).
"""

import FWCore.ParameterSet.Config as cms
from FWCore.ParameterSet.VarParsing import VarParsing

options = VarParsing("analysis")  # inputFiles, maxEvents, outputFile and others
options.register(
    "EGModelName",
    "sample.onnx",
    VarParsing.multiplicity.singleton,
    VarParsing.varType.string,
    "ONNX file in RecoE2E/tfModels",
)
options.parseArguments()

process = cms.Process("EGClassifier")
process.load("FWCore.MessageService.MessageLogger_cfi")
process.MessageLogger.cerr.FwkReport.reportEvery = 100

# DetFrames asks for the geometry, and declares the tracker's records.
process.load("Configuration.StandardSequences.GeometryRecoDB_cff")
process.load("Configuration.StandardSequences.MagneticField_38T_cff")
process.load("Configuration.StandardSequences.Reconstruction_cff")
process.load("Configuration.StandardSequences.FrontierConditions_GlobalTag_cff")
process.GlobalTag.globaltag = "120X_upgrade2018_realistic_v1"

process.source = cms.Source("PoolSource", fileNames=cms.untracked.vstring(*options.inputFiles))
process.maxEvents = cms.untracked.PSet(input=cms.untracked.int32(options.maxEvents))

process.load("RecoE2E.FrameProducers.DetFrameProducer_cfi")
process.load("RecoE2E.FrameProducers.EGFrameProducer_cfi")
process.EGTagger = cms.EDProducer(
    "EGTagger",
    photonCollection=cms.InputTag("gedPhotons"),
    EGFrames=cms.InputTag("EGFrames", "EGFrames"),
    EGModelName=cms.FileInPath("RecoE2E/tfModels/" + options.EGModelName),
)
process.p = cms.Path(process.DetFrames + process.EGFrames + process.EGTagger)

# The photons are kept because the keys of EGProbs point to them.
process.out = cms.OutputModule(
    "PoolOutputModule",
    fileName=cms.untracked.string(options.outputFile),
    outputCommands=cms.untracked.vstring(
        "drop *", "keep *_EGTagger_*_*", "keep recoPhotons_gedPhotons__*"
    ),
)
process.ep = cms.EndPath(process.out)

process.FastTimerService = cms.Service(
    "FastTimerService",
    enableDQM=cms.untracked.bool(False),
    printRunSummary=cms.untracked.bool(False),
    printJobSummary=cms.untracked.bool(True),
    writeJSONSummary=cms.untracked.bool(True),
    jsonFileName=cms.untracked.string("resources.json"),
)
