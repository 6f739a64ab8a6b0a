// Replacement for RecoE2E's EGTagger, under the name and with the products that its users know:
// EGFrames in, EGProbs out. Written from the public interface of the package, not from its code.
// It differs in three ways: the model is the one that the configuration names, the session is
// opened once a job, and the scores reach the event. A photon with an empty frame (outside the
// barrel, or below 10 GeV) is not inferred and has -1.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "DataFormats/Common/interface/Handle.h"
#include "DataFormats/EgammaCandidates/interface/Photon.h"
#include "DataFormats/EgammaCandidates/interface/PhotonFwd.h"
#include "E2EInference/ElectronPhoton/interface/Model.h"
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
#include "RecoE2E/DataFormats/interface/FrameCollections.h"

class EGTagger : public edm::stream::EDProducer<edm::GlobalCache<electronphoton::Model>> {
public:
  EGTagger(const edm::ParameterSet& config, const electronphoton::Model*)
      : photons_(consumes<reco::PhotonCollection>(config.getParameter<edm::InputTag>("photonCollection"))),
        frames_(consumes<e2e::Frame4D>(config.getParameter<edm::InputTag>("EGFrames"))) {
    produces<e2e::PhoPredCollection>("EGProbs");
  }

  static std::unique_ptr<electronphoton::Model> initializeGlobalCache(const edm::ParameterSet& config) {
    return std::make_unique<electronphoton::Model>(config.getParameter<edm::FileInPath>("EGModelName").fullPath());
  }

  static void globalEndJob(const electronphoton::Model*) {}

  static void fillDescriptions(edm::ConfigurationDescriptions& descriptions) {
    edm::ParameterSetDescription description;
    description.add<edm::InputTag>("photonCollection", edm::InputTag("gedPhotons"));
    description.add<edm::InputTag>("EGFrames", edm::InputTag("EGFrames", "EGFrames"));
    description.add<edm::FileInPath>("EGModelName", edm::FileInPath("RecoE2E/tfModels/sample.onnx"));
    descriptions.addDefault(description);
  }

private:
  void produce(edm::Event& event, const edm::EventSetup&) override {
    const edm::Handle<reco::PhotonCollection> photons = event.getHandle(photons_);
    const e2e::Frame4D& frames = event.get(frames_);
    if (frames.size() != photons->size())
      throw cms::Exception("LogicError") << "expected one frame for each of " << photons->size()
                                         << " photons, found " << frames.size();
    buffer_.clear();
    std::vector<bool> hasFrame;
    for (const e2e::Frame3D& frame : frames)
      hasFrame.push_back(append(frame));

    const auto engine = [this](std::vector<float>& values, std::size_t n) { return globalCache()->scores(values, n); };
    const std::vector<float> scores = electronphoton::scoreFrames(buffer_, hasFrame, engine);

    auto product = std::make_unique<e2e::PhoPredCollection>(reco::PhotonRefProd(photons));
    for (std::size_t i = 0; i < scores.size(); ++i)
      product->setValue(i, scores[i]);
    event.put(std::move(product), "EGProbs");
  }

  // Adds the one channel of a frame to the buffer, row by row; an empty frame is left out.
  bool append(const e2e::Frame3D& frame) {
    constexpr std::size_t side = electronphoton::kSide;
    if (frame.size() != 1 || frame[0].size() != side || frame[0][0].size() != side)
      throw cms::Exception("Configuration")
          << "EGFrames: expected one channel of 32 x 32 crystals, found " << frame.size()
          << " channel(s); the model takes the energy alone";
    const std::size_t before = buffer_.size();
    for (const std::vector<float>& row : frame[0])
      buffer_.insert(buffer_.end(), row.begin(), row.end());
    if (std::any_of(buffer_.begin() + before, buffer_.end(), [](float energy) { return energy > 0.f; }))
      return true;
    buffer_.resize(before);
    return false;
  }

  const edm::EDGetTokenT<reco::PhotonCollection> photons_;
  const edm::EDGetTokenT<e2e::Frame4D> frames_;
  std::vector<float> buffer_;  // kept between events for its memory only
};

DEFINE_FWK_MODULE(EGTagger);
