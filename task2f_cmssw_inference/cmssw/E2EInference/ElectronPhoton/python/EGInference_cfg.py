r"""Scores the photons of EDM files with an ONNX model and times it with FastTimerService.

    cmsRun E2EInference/ElectronPhoton/python/EGInference_cfg.py \
        inputFiles=file:input.root maxEvents=-1 EGModelName=sample.onnx

The model is a file in E2EInference/ElectronPhoton/data. Writes timingFile (times per module) and
outputFile (scores and photons). The producer reads no conditions, so the job needs no database.
"""

import FWCore.ParameterSet.Config as cms
from E2EInference.ElectronPhoton.electronPhotonProducer_cfi import (  # written by scram b
    electronPhotonProducer,
)
from FWCore.ParameterSet.VarParsing import VarParsing

options = VarParsing("analysis")  # inputFiles, maxEvents, outputFile and others
options.register(
    "EGModelName",
    "sample.onnx",
    VarParsing.multiplicity.singleton,
    VarParsing.varType.string,
    "ONNX file in E2EInference/ElectronPhoton/data",
)
options.register(
    "timingFile",
    "resources.json",
    VarParsing.multiplicity.singleton,
    VarParsing.varType.string,
    "where FastTimerService writes the times",
)
options.parseArguments()

process = cms.Process("EGInference")
process.load("FWCore.MessageService.MessageLogger_cfi")
process.MessageLogger.cerr.FwkReport.reportEvery = 100

process.source = cms.Source("PoolSource", fileNames=cms.untracked.vstring(*options.inputFiles))
process.maxEvents = cms.untracked.PSet(input=cms.untracked.int32(options.maxEvents))

process.electronPhotonProducer = electronPhotonProducer.clone(
    model=cms.FileInPath("E2EInference/ElectronPhoton/data/" + options.EGModelName)
)
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
