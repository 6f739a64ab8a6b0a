// Runs the producer on events from the standard input, as the framework would: one cache for the job,
// produce() for every event of every stream. Argument: the model.
// Input, one line an event: n_hits (id energy)...  n_photons (pt eta n_crystals id...)...
// Output: one line an event with the scores by ValueMap, then a line with sessions and runs.

#include <iostream>

#include "ElectronPhotonProducer.cc"

int main(int, char** arguments) {
  edm::ConfigurationDescriptions descriptions;
  DefinedModule::fillDescriptions(descriptions);
  edm::ParameterSet config = descriptions.defaults;
  config.values["model"] = edm::FileInPath(arguments[1]);
  try {
    const std::unique_ptr<electronphoton::Model> cache = DefinedModule::initializeGlobalCache(config);
    const int checks = cms::Ort::ONNXRuntime::runs();
    std::vector<std::unique_ptr<DefinedModule>> streams;
    for (int i = 0; i < 2; ++i) {
      streams.push_back(std::make_unique<DefinedModule>(config, cache.get()));
      streams.back()->setCache(cache.get());
    }
    std::string line;
    for (std::size_t number = 0; std::getline(std::cin, line); ++number) {
      std::istringstream values(line);
      EcalRecHitCollection hits;
      reco::PhotonCollection photons;
      std::size_t count, crystals;
      std::uint32_t id;
      float energy;
      double pt, eta;
      for (values >> count; hits.size() < count;) {
        values >> id >> energy;
        hits.emplace_back(id, energy);
      }
      for (values >> count; photons.size() < count;) {
        std::vector<std::pair<DetId, float>> cluster;
        for (values >> pt >> eta >> crystals; cluster.size() < crystals;) {
          values >> id;
          cluster.emplace_back(id, 1.f);
        }
        photons.emplace_back(pt, eta, std::make_shared<reco::SuperCluster>(cluster));
      }
      edm::Event event;
      event.inputs["gedPhotons"] = photons;
      event.inputs["reducedEcalRecHitsEB"] = hits;
      edm::stream::EDProducer<edm::GlobalCache<electronphoton::Model>>& module = *streams[number % 2];
      module.produce(event, edm::EventSetup());
      const auto map = std::any_cast<edm::ValueMap<float>>(event.outputs.at(""));
      const auto scores = std::any_cast<std::vector<float>>(event.outputs.at("scores"));
      for (std::size_t i = 0; i < photons.size(); ++i) {
        if (map.get(7, i) != scores.at(i))
          return 3;
        std::printf("%.9g ", scores[i]);
      }
      std::printf("\n");
    }
    std::printf("%d %d\n", cms::Ort::ONNXRuntime::created(), cms::Ort::ONNXRuntime::runs() - checks);
    DefinedModule::globalEndJob(cache.get());
  } catch (const cms::Exception& error) {
    std::cerr << error.what() << std::endl;
    return 65;
  }
}
