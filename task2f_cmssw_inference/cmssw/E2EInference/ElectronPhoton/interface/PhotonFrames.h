#ifndef E2EInference_ElectronPhoton_PhotonFrames_h
#define E2EInference_ElectronPhoton_PhotonFrames_h

// From the crystals of the electromagnetic barrel to the network's input, and back to one score per
// photon. Plain C++17: no CMSSW and no ONNX Runtime header, so that the very code that runs inside
// cmsRun is compiled and tested outside.
//
// The frame is the one of RecoE2E (FrameProducers): raw energies in GeV, hits with E > 0, the seed
// crystal at [15][15], rows along eta (zero padded beyond |ieta| = 85), columns along phi (wrapped).

#include <cstddef>
#include <functional>
#include <vector>

namespace electronphoton {

  constexpr int kMaxIeta = 85;
  constexpr int kColumns = 360;  // iphi 1..360
  constexpr int kSide = 32;
  constexpr int kSeed = 15;  // row and column of the seed crystal in its frame
  constexpr std::size_t kPixels = kSide * kSide;
  constexpr float kNoScore = -1.f;  // of a photon without a frame

  struct Crystal {
    int ieta = 0;  // -85..-1, 1..85; 0 is no crystal
    int iphi = 0;  // 1..360
  };

  struct Hit {
    Crystal crystal;
    float energy;  // GeV
  };

  bool isBarrel(const Crystal& crystal);
  int rowOf(const Crystal& crystal);     // 0..169
  int columnOf(const Crystal& crystal);  // 0..359

  // Photons that RecoE2E gives a frame: pt >= 10 GeV and |eta| <= 1.44.
  bool passesSelection(double pt, double eta);

  // The barrel crystal of a supercluster with the highest energy; no crystal if none has E > 0.
  Crystal seedOf(const std::vector<Hit>& supercluster);

  // Frames (n, 1, 32, 32) around the seeds in one contiguous buffer that is reused from event to
  // event; photons without a seed are left out. Hits are binned directly into the frames: the
  // 170 x 360 map, of which two photons need 3%, is never made.
  class PhotonFrames {
  public:
    std::vector<float>& fill(const std::vector<Hit>& hits, const std::vector<Crystal>& seeds);

  private:
    std::vector<float> buffer_;
  };

  // One score for each of n frames (n, 1, 32, 32). Not const: cms::Ort::ONNXRuntime wants to own its
  // input for the call, and swapping is cheaper than copying.
  using Engine = std::function<std::vector<float>(std::vector<float>& frames, std::size_t n)>;

  // One score per photon: the engine's where there is a frame, kNoScore elsewhere. ``frames`` holds
  // those of the photons with hasFrame, in their order. One call of the engine, none without frames.
  // Throws std::runtime_error if the engine does not return one score per frame.
  std::vector<float> scoreFrames(std::vector<float>& frames, const std::vector<bool>& hasFrame, const Engine& engine);

  // The same from an event's hits and its photons' seeds.
  std::vector<float> scorePhotons(PhotonFrames& frames,
                                  const std::vector<Hit>& hits,
                                  const std::vector<Crystal>& seeds,
                                  const Engine& engine);

}  // namespace electronphoton

#endif
