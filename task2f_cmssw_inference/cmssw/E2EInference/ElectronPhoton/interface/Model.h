#ifndef E2EInference_ElectronPhoton_Model_h
#define E2EInference_ElectronPhoton_Model_h

// The exported network in one session of ONNX Runtime. The framework makes one for the job
// (edm::GlobalCache) and hands it to every stream.

#include <cstddef>
#include <string>
#include <vector>

#include "PhysicsTools/ONNXRuntime/interface/ONNXRuntime.h"

namespace electronphoton {

  class Model {
  public:
    // Throws cms::Exception of category Configuration for a file that is not the model of this
    // package: it has to take "modelInput" [batch, 1, 32, 32] and return one probability per frame
    // as "modelOutput".
    explicit Model(const std::string& path);

    // P(electron) of n > 0 frames (n, 1, 32, 32).
    std::vector<float> scores(std::vector<float>& frames, std::size_t n) const;

  private:
    cms::Ort::ONNXRuntime runtime_;
  };

}  // namespace electronphoton

#endif
