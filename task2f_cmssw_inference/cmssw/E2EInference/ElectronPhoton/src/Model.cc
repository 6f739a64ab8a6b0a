#include "E2EInference/ElectronPhoton/interface/Model.h"

#include <cstdint>
#include <exception>
#include <utility>

#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"
#include "FWCore/Utilities/interface/Exception.h"

namespace electronphoton {

  namespace {
    const std::string kInput = "modelInput";
    const std::string kOutput = "modelOutput";

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
    // The wrapper does not show the names or shapes of the inputs; an empty frame that goes through
    // proves both, before the first event.
    std::vector<float> frame(kPixels, 0.f);
    std::vector<float> found;
    try {
      found = scores(frame, 1);
    } catch (const std::exception& error) {
      throw cms::Exception("Configuration")
          << path << ": expected an input '" << kInput << "' of shape [batch, 1, 32, 32], found: " << error.what()
          << "; export the model for RecoE2E frames (one channel)";
    }
    if (found.size() != 1 || !(found.front() >= 0.f && found.front() <= 1.f)) {
      cms::Exception error("Configuration");
      error << path << ": expected one probability per photon, found " << found.size() << " value(s)";
      for (float score : found)
        error << " " << score;
      error << "; export the model with the sigmoid inside";
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
