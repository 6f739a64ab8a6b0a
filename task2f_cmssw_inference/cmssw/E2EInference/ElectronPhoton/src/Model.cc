#include "E2EInference/ElectronPhoton/interface/Model.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <utility>

#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"
#include "FWCore/Utilities/interface/Exception.h"

namespace electronphoton {

  namespace {
    const std::string kInput = "modelInput";
    const std::string kOutput = "modelOutput";
    constexpr std::array<float, 4> kProbes{{0.f, 1.f, 50.f, 1000.f}};  // GeV in the seed crystal

    cms::Ort::ONNXRuntime open(const std::string& path) try {
      return cms::Ort::ONNXRuntime(path);
    } catch (const std::exception& found) {
      throw cms::Exception("Configuration")
          << path << ": expected a model that this release's ONNX Runtime can load, found: " << found.what()
          << "; export with opset 10 and IR version 5, which every release with ONNX Runtime can load";
    }
  }  // namespace

  Model::Model(const std::string& path) : runtime_(open(path)) {
    const std::vector<std::string>& outputs = runtime_.getOutputNames();
    if (outputs.size() != 1 || outputs.front() != kOutput) {
      cms::Exception error("Configuration");
      error << path << ": expected one output '" << kOutput << "', found";
      for (const std::string& name : outputs)
        error << " '" << name << "'";
      error << "; export the model with output_names=['" << kOutput << "']";
      throw error;
    }
    // The wrapper shows neither the shape of the input nor what the output means. Frames with one hit
    // of very different energies, sent as one batch, prove the shape and the free batch before the
    // first event, and logits of them leave the range of a probability.
    std::vector<float> frames(kProbes.size() * kPixels, 0.f);
    for (std::size_t i = 0; i < kProbes.size(); ++i)
      frames[i * kPixels + kSeed * kSide + kSeed] = kProbes[i];
    std::vector<float> found;
    try {
      found = scores(frames, kProbes.size());
    } catch (const std::exception& error) {
      throw cms::Exception("Configuration")
          << path << ": expected an input '" << kInput << "' of shape [batch, 1, 32, 32], found: " << error.what()
          << "; export the model for RecoE2E frames (one channel)";
    }
    const auto isProbability = [](float score) { return score >= 0.f && score <= 1.f; };
    if (found.size() != kProbes.size() || !std::all_of(found.begin(), found.end(), isProbability)) {
      cms::Exception error("Configuration");
      error << path << ": expected probabilities, found for " << kProbes.size() << " test frames";
      for (float score : found)
        error << " " << score;
      error << "; export the model with the sigmoid inside, one score per photon";
      throw error;
    }
  }

  std::vector<float> Model::scores(std::vector<float>& frames, std::size_t n) const {
    cms::Ort::FloatArrays values(1);
    values.front().swap(frames);
    cms::Ort::FloatArrays outputs = runtime_.run({kInput}, values, {}, {kOutput}, static_cast<std::int64_t>(n));
    values.front().swap(frames);
    return std::move(outputs.at(0));
  }

}  // namespace electronphoton
