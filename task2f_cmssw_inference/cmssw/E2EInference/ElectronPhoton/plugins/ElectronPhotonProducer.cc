// P(electron) of every reconstructed photon, from the energies of the 32 x 32 barrel crystals around
// its seed. One ONNX Runtime session for the whole job, shared by all streams; the scores are put
// into the event as edm::ValueMap<float> keyed on the photons, and as std::vector<float> "scores" in
// the order of the collection for readers without CMSSW.

#include <cmath>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "DataFormats/Common/interface/Handle.h"
#include "DataFormats/Common/interface/ValueMap.h"
#include "DataFormats/EcalRecHit/interface/EcalRecHitCollections.h"
#include "DataFormats/EgammaCandidates/interface/Photon.h"
#include "DataFormats/EgammaCandidates/interface/PhotonFwd.h"
#include "DataFormats/EgammaReco/interface/SuperCluster.h"
#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"
#include "FWCore/Framework/interface/Event.h"
#include "FWCore/Framework/interface/MakerMacros.h"
#include "FWCore/Framework/interface/stream/EDProducer.h"
#include "FWCore/ParameterSet/interface/ConfigurationDescriptions.h"
#include "FWCore/ParameterSet/interface/FileInPath.h"
#include "FWCore/ParameterSet/interface/ParameterSet.h"
#include "FWCore/ParameterSet/interface/ParameterSetDescription.h"
#include "FWCore/Utilities/interface/EDGetToken.h"
#include "FWCore/Utilities/interface/Exception.h"
#include "FWCore/Utilities/interface/InputTag.h"
#include "PhysicsTools/ONNXRuntime/interface/ONNXRuntime.h"

namespace {
  using cms::Ort::FloatArrays;
  using cms::Ort::ONNXRuntime;
  using Names = std::vector<std::string>;
  using Shapes = std::vector<std::vector<std::int64_t>>;

  // ONNXRuntime::run has taken the shapes of the inputs since they may be dynamic, and did not before.
  // The int/long argument prefers the first where both compile.
  template <typename Runtime>
  auto callRun(const Runtime& runtime, const Names& in, FloatArrays& values, const Names& out, std::int64_t n, int)
      -> decltype(runtime.run(in, values, Shapes(), out, n)) {
    return runtime.run(in, values, Shapes(), out, n);
  }

  template <typename Runtime>
  auto callRun(const Runtime& runtime, const Names& in, FloatArrays& values, const Names& out, std::int64_t n, long)
      -> decltype(runtime.run(in, values, out, n)) {
    return runtime.run(in, values, out, n);
  }

  std::vector<float> infer(const ONNXRuntime& runtime,
                           const std::string& input,
                           const std::string& output,
                           std::vector<float>& frames,
                           std::size_t n) {
    FloatArrays values(1);
    values.front().swap(frames);
    FloatArrays outputs = callRun(runtime, {input}, values, {output}, static_cast<std::int64_t>(n), 0);
    values.front().swap(frames);
    return std::move(outputs.at(0));
  }

  // A path as it is (from the command line), else one below CMSSW_SEARCH_PATH, as edm::FileInPath.
  std::string findModel(const std::string& name) {
    if (std::ifstream(name).good())
      return name;
    return edm::FileInPath(name).fullPath();
  }

  // The wrapper does not show the names or shapes of the inputs; an empty frame that goes through
  // proves both, before the first event.
  void checkModel(const ONNXRuntime& runtime,
                  const std::string& path,
                  const std::string& input,
                  const std::string& output) {
    const Names& outputs = runtime.getOutputNames();
    if (outputs.size() != 1 || outputs.front() != output) {
      cms::Exception error("Configuration");
      error << path << ": expected one output '" << output << "', found";
      for (const std::string& name : outputs)
        error << " '" << name << "'";
      error << "; export the model with output_names=['" << output << "'] or set outputName";
      throw error;
    }
    std::vector<float> frame(electronphoton::kPixels, 0.f);
    std::vector<float> scores;
    try {
      scores = infer(runtime, input, output, frame, 1);
    } catch (const std::exception& found) {
      throw cms::Exception("Configuration")
          << path << ": expected an input '" << input << "' of shape [batch, 1, 32, 32], found: " << found.what()
          << "; export the model for RecoE2E frames (one channel) or set inputName";
    }
    if (scores.size() != 1 || !(scores.front() >= 0.f && scores.front() <= 1.f)) {
      cms::Exception error("Configuration");
      error << path << ": expected one probability per photon, found " << scores.size() << " value(s)";
      for (float score : scores)
        error << " " << score;
      error << "; export the model with the sigmoid inside";
      throw error;
    }
  }
}  // namespace

class ElectronPhotonProducer : public edm::stream::EDProducer<edm::GlobalCache<ONNXRuntime>> {
public:
  ElectronPhotonProducer(const edm::ParameterSet& config, const ONNXRuntime*);

  static std::unique_ptr<ONNXRuntime> initializeGlobalCache(const edm::ParameterSet& config);
  static void globalEndJob(const ONNXRuntime*) {}
  static void fillDescriptions(edm::ConfigurationDescriptions& descriptions);

private:
  void produce(edm::Event& event, const edm::EventSetup&) override;
  std::uint32_t seedOfPhoton(const reco::Photon& photon, const EcalRecHitCollection& recHits);

  const edm::EDGetTokenT<reco::PhotonCollection> photons_;
  const edm::EDGetTokenT<EcalRecHitCollection> recHits_;
  const std::string inputName_;
  const std::string outputName_;

  // Kept between events for their memory only.
  electronphoton::PhotonFrames frames_;
  std::vector<electronphoton::Hit> hits_;
  std::vector<electronphoton::Hit> supercluster_;
  std::vector<std::uint32_t> seeds_;
};

ElectronPhotonProducer::ElectronPhotonProducer(const edm::ParameterSet& config, const ONNXRuntime*)
    : photons_(consumes<reco::PhotonCollection>(config.getParameter<edm::InputTag>("photons"))),
      recHits_(consumes<EcalRecHitCollection>(config.getParameter<edm::InputTag>("recHits"))),
      inputName_(config.getParameter<std::string>("inputName")),
      outputName_(config.getParameter<std::string>("outputName")) {
  produces<edm::ValueMap<float>>();
  produces<std::vector<float>>("scores");
}

std::unique_ptr<ONNXRuntime> ElectronPhotonProducer::initializeGlobalCache(const edm::ParameterSet& config) {
  const std::string path = findModel(config.getParameter<std::string>("model"));
  std::unique_ptr<ONNXRuntime> runtime;
  try {
    runtime = std::make_unique<ONNXRuntime>(path);
  } catch (const std::exception& found) {
    throw cms::Exception("Configuration")
        << path << ": expected a model that this release's ONNX Runtime can load, found: " << found.what()
        << "; export with opset 10 and IR version 5, which every release with ONNX Runtime can load";
  }
  checkModel(
      *runtime, path, config.getParameter<std::string>("inputName"), config.getParameter<std::string>("outputName"));
  return runtime;
}

void ElectronPhotonProducer::fillDescriptions(edm::ConfigurationDescriptions& descriptions) {
  edm::ParameterSetDescription description;
  description.add<edm::InputTag>("photons", edm::InputTag("gedPhotons"));
  description.add<edm::InputTag>("recHits", edm::InputTag("reducedEcalRecHitsEB"));
  // A string and not a FileInPath: scram writes the cfi with this default, when there is no model yet.
  description.add<std::string>("model", "task2f_cmssw_inference.onnx")
      ->setComment("path of the ONNX file, as it is or below CMSSW_SEARCH_PATH");
  description.add<std::string>("inputName", "modelInput");
  description.add<std::string>("outputName", "modelOutput");
  descriptions.addWithDefaultLabel(description);
}

std::uint32_t ElectronPhotonProducer::seedOfPhoton(const reco::Photon& photon, const EcalRecHitCollection& recHits) {
  if (!electronphoton::passesSelection(photon.pt(), photon.eta()))
    return electronphoton::kNoSeed;
  supercluster_.clear();
  for (const auto& idAndFraction : photon.superCluster()->hitsAndFractions()) {
    const auto recHit = recHits.find(idAndFraction.first);
    if (recHit != recHits.end())
      supercluster_.push_back({idAndFraction.first.rawId(), static_cast<float>(recHit->energy())});
  }
  return electronphoton::seedOf(supercluster_);
}

void ElectronPhotonProducer::produce(edm::Event& event, const edm::EventSetup&) {
  const edm::Handle<reco::PhotonCollection> photons = event.getHandle(photons_);
  const EcalRecHitCollection& recHits = event.get(recHits_);

  seeds_.clear();
  for (const reco::Photon& photon : *photons)
    seeds_.push_back(seedOfPhoton(photon, recHits));
  hits_.clear();
  for (const EcalRecHit& recHit : recHits)
    hits_.push_back({recHit.id().rawId(), static_cast<float>(recHit.energy())});

  const auto engine = [this](std::vector<float>& frames, std::size_t n) {
    return infer(*globalCache(), inputName_, outputName_, frames, n);
  };
  auto scores =
      std::make_unique<std::vector<float>>(electronphoton::scorePhotons(frames_, hits_, seeds_, engine));

  auto map = std::make_unique<edm::ValueMap<float>>();
  edm::ValueMap<float>::Filler filler(*map);
  filler.insert(photons, scores->begin(), scores->end());
  filler.fill();
  event.put(std::move(map));
  event.put(std::move(scores), "scores");
}

DEFINE_FWK_MODULE(ElectronPhotonProducer);
