r"""Scores the photons of EDM files with an ONNX model and times it with FastTimerService.

    cmsRun E2EInference/ElectronPhoton/test/EGInference_cfg.py \
        inputFiles=file:input.root maxEvents=-1 EGModelName=task2f_cmssw_inference.onnx

Writes timingFile (times per module) and outputFile (scores and photons).
"""

import FWCore.ParameterSet.Config as cms
from E2EInference.ElectronPhoton.electronPhotonProducer_cfi import (  # written by scram b
    electronPhotonProducer,
)
from FWCore.ParameterSet.VarParsing import VarParsing

options = VarParsing("analysis")  # inputFiles, maxEvents, outputFile and others
options.register(
    "EGModelName",
    "task2f_cmssw_inference.onnx",
    VarParsing.multiplicity.singleton,
    VarParsing.varType.string,
    "ONNX file: a path, or a name below CMSSW_SEARCH_PATH",
)
options.register(
    "globalTag",
    "120X_upgrade2018_realistic_v1",
    VarParsing.multiplicity.singleton,
    VarParsing.varType.string,
    "conditions; the producer reads none, so 'none' runs without the database",
)
options.register(
    "timingFile",
    "resources.json",
    VarParsing.multiplicity.singleton,
    VarParsing.varType.string,
    "where FastTimerService writes the times",
)
options.register(
    "threads",
    1,
    VarParsing.multiplicity.singleton,
    VarParsing.varType.int,
    "threads and streams of the framework; the session itself always has one",
)
options.parseArguments()

process = cms.Process("EGInference")
process.load("FWCore.MessageService.MessageLogger_cfi")
process.MessageLogger.cerr.FwkReport.reportEvery = 100

if options.globalTag != "none":
    process.load("Configuration.StandardSequences.FrontierConditions_GlobalTag_cff")
    process.GlobalTag.globaltag = options.globalTag

process.source = cms.Source("PoolSource", fileNames=cms.untracked.vstring(*options.inputFiles))
process.maxEvents = cms.untracked.PSet(input=cms.untracked.int32(options.maxEvents))
process.options = cms.untracked.PSet(
    numberOfThreads=cms.untracked.uint32(options.threads),
    numberOfStreams=cms.untracked.uint32(options.threads),
)

process.electronPhotonProducer = electronPhotonProducer.clone(model=options.EGModelName)
process.p = cms.Path(process.electronPhotonProducer)

# The photons are kept because the keys of the map point to them.
process.out = cms.OutputModule(
    "PoolOutputModule",
    fileName=cms.untracked.string(options.outputFile),
    outputCommands=cms.untracked.vstring(
        "drop *", "keep *_electronPhotonProducer_*_*", "keep recoPhotons_gedPhotons__*"
    ),
)
process.e = cms.EndPath(process.out)

process.FastTimerService = cms.Service(
    "FastTimerService",
    enableDQM=cms.untracked.bool(False),
    printRunSummary=cms.untracked.bool(False),
    printJobSummary=cms.untracked.bool(True),
    writeJSONSummary=cms.untracked.bool(True),
    jsonFileName=cms.untracked.string(options.timingFile),
)
