// Runs the replacement of RecoE2E's EGTagger on events from the standard input, with one cache for
// the job. Argument: the model. Input, one line an event: n_photons, and of each photon the place and
// energy of its one hit (row column energy), energy 0 for an empty frame; "two" instead of the number
// for a frame of two channels. Output as that of run_producer.cc.

#include <iostream>

#include "EGTagger.cc"

int main(int, char** arguments) {
  edm::ConfigurationDescriptions descriptions;
  DefinedModule::fillDescriptions(descriptions);
  edm::ParameterSet config = descriptions.defaults;
  config.values["EGModelName"] = edm::FileInPath(arguments[1]);
  try {
    const std::unique_ptr<electronphoton::Model> cache = DefinedModule::initializeGlobalCache(config);
    const int checks = cms::Ort::ONNXRuntime::runs();
    DefinedModule tagger(config, cache.get());
    tagger.setCache(cache.get());
    std::string line, first;
    while (std::getline(std::cin, line)) {
      std::istringstream values(line);
      values >> first;
      const std::size_t channels = first == "two" ? 2 : 1, count = first == "two" ? 1 : std::stoul(first);
      e2e::Frame4D frames(count, e2e::Frame3D(channels, {32, std::vector<float>(32)}));
      for (e2e::Frame3D& frame : frames) {
        std::size_t row = 0, column = 0;
        float energy = 0;
        values >> row >> column >> energy;
        frame[0][row][column] = energy;
      }
      edm::Event event;
      event.inputs["gedPhotons"] = reco::PhotonCollection(count, reco::Photon(50, 0, nullptr));
      event.inputs["EGFrames"] = frames;
      edm::stream::EDProducer<edm::GlobalCache<electronphoton::Model>>& module = tagger;
      module.produce(event, edm::EventSetup());
      const auto scores = std::any_cast<e2e::PhoPredCollection>(event.outputs.at("EGProbs"));
      for (std::size_t i = 0; i < count; ++i)
        std::printf("%.9g ", scores.value(i));
      std::printf("\n");
    }
    std::printf("%d %d\n", cms::Ort::ONNXRuntime::created(), cms::Ort::ONNXRuntime::runs() - checks);
    DefinedModule::globalEndJob(cache.get());
  } catch (const cms::Exception& error) {
    std::cerr << error.what() << std::endl;
    return 65;
  }
}
