// P(electron) of every reconstructed photon, from the energies of the 32 x 32 barrel crystals around
// its seed; -1 for a photon without a frame. One ONNX Runtime session for the whole job, shared by
// all streams. The scores are put into the event as edm::ValueMap<float> keyed on the photons, and
// as std::vector<float> "scores" in the order of the collection for readers without CMSSW.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "DataFormats/Common/interface/Handle.h"
#include "DataFormats/Common/interface/ValueMap.h"
#include "DataFormats/DetId/interface/DetId.h"
#include "DataFormats/EcalDetId/interface/EBDetId.h"
#include "DataFormats/EcalRecHit/interface/EcalRecHitCollections.h"
#include "DataFormats/EgammaCandidates/interface/Photon.h"
#include "DataFormats/EgammaCandidates/interface/PhotonFwd.h"
#include "DataFormats/EgammaReco/interface/SuperCluster.h"
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
#include "FWCore/Utilities/interface/InputTag.h"

namespace {
  electronphoton::Crystal crystalOf(const DetId& id) {
    if (id.det() != DetId::Ecal || id.subdetId() != EcalBarrel)
      return {};
    const EBDetId barrel(id);
    return {barrel.ieta(), barrel.iphi()};
  }
}  // namespace

class ElectronPhotonProducer : public edm::stream::EDProducer<edm::GlobalCache<electronphoton::Model>> {
public:
  ElectronPhotonProducer(const edm::ParameterSet& config, const electronphoton::Model*);

  static std::unique_ptr<electronphoton::Model> initializeGlobalCache(const edm::ParameterSet& config);
  static void globalEndJob(const electronphoton::Model*) {}
  static void fillDescriptions(edm::ConfigurationDescriptions& descriptions);

private:
  void produce(edm::Event& event, const edm::EventSetup&) override;
  electronphoton::Crystal seedOfPhoton(const reco::Photon& photon, const EcalRecHitCollection& recHits);

  const edm::EDGetTokenT<reco::PhotonCollection> photons_;
  const edm::EDGetTokenT<EcalRecHitCollection> recHits_;

  // Kept between events for their memory only.
  electronphoton::PhotonFrames frames_;
  std::vector<electronphoton::Hit> hits_;
  std::vector<electronphoton::Hit> supercluster_;
  std::vector<electronphoton::Crystal> seeds_;
};

ElectronPhotonProducer::ElectronPhotonProducer(const edm::ParameterSet& config, const electronphoton::Model*)
    : photons_(consumes<reco::PhotonCollection>(config.getParameter<edm::InputTag>("photons"))),
      recHits_(consumes<EcalRecHitCollection>(config.getParameter<edm::InputTag>("recHits"))) {
  produces<edm::ValueMap<float>>();
  produces<std::vector<float>>("scores");
}

std::unique_ptr<electronphoton::Model> ElectronPhotonProducer::initializeGlobalCache(const edm::ParameterSet& config) {
  return std::make_unique<electronphoton::Model>(config.getParameter<edm::FileInPath>("model").fullPath());
}

void ElectronPhotonProducer::fillDescriptions(edm::ConfigurationDescriptions& descriptions) {
  edm::ParameterSetDescription description;
  description.add<edm::InputTag>("photons", edm::InputTag("gedPhotons"));
  description.add<edm::InputTag>("recHits", edm::InputTag("reducedEcalRecHitsEB"));
  description.add<edm::FileInPath>("model", edm::FileInPath("E2EInference/ElectronPhoton/data/sample.onnx"));
  descriptions.addWithDefaultLabel(description);
}

electronphoton::Crystal ElectronPhotonProducer::seedOfPhoton(const reco::Photon& photon,
                                                             const EcalRecHitCollection& recHits) {
  if (!electronphoton::passesSelection(photon.pt(), photon.eta()))
    return {};
  supercluster_.clear();
  for (const auto& idAndFraction : photon.superCluster()->hitsAndFractions()) {
    const auto recHit = recHits.find(idAndFraction.first);
    if (recHit != recHits.end())
      supercluster_.push_back({crystalOf(idAndFraction.first), static_cast<float>(recHit->energy())});
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
    hits_.push_back({crystalOf(recHit.id()), static_cast<float>(recHit.energy())});

  const auto engine = [this](std::vector<float>& frames, std::size_t n) { return globalCache()->scores(frames, n); };
  auto scores = std::make_unique<std::vector<float>>(electronphoton::scorePhotons(frames_, hits_, seeds_, engine));

  auto map = std::make_unique<edm::ValueMap<float>>();
  edm::ValueMap<float>::Filler filler(*map);
  filler.insert(photons, scores->begin(), scores->end());
  filler.fill();
  event.put(std::move(map));
  event.put(std::move(scores), "scores");
}

DEFINE_FWK_MODULE(ElectronPhotonProducer);
