#ifndef E2EInference_ElectronPhoton_PhotonFrames_h
#define E2EInference_ElectronPhoton_PhotonFrames_h

// From the crystals of the electromagnetic barrel to the network's input, and back to one score per
// photon. Plain C++17: no CMSSW and no ONNX Runtime header, so that the very code that runs inside
// cmsRun is compiled and tested outside.
//
// The frame is the one of RecoE2E (FrameProducers): raw energies in GeV, hits with E > 0, the seed
// crystal at [15][15], rows along eta (zero padded beyond |ieta| = 85), columns along phi (wrapped).

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace electronphoton {

  constexpr int kRows = 170;     // ieta -85..-1, 1..85
  constexpr int kColumns = 360;  // iphi 1..360
  constexpr int kSide = 32;
  constexpr int kSeed = 15;  // row and column of the seed crystal in its frame
  constexpr std::size_t kPixels = kSide * kSide;

  constexpr std::uint32_t kNoSeed = 0;  // a photon whose frame stays empty

  struct Hit {
    std::uint32_t rawId;
    float energy;  // GeV
  };

  struct Crystal {
    int ieta;  // -85..-1, 1..85
    int iphi;  // 1..360
  };

  // Layout of EBDetId: detector 3 << 28 | subdetector 1 << 25 | 0x10000 for z > 0 | |ieta| << 9 | iphi.
  bool isBarrel(std::uint32_t rawId);
  Crystal decode(std::uint32_t rawId);

  int rowOf(const Crystal& crystal);
  int columnOf(const Crystal& crystal);

  // Photons that RecoE2E gives a frame: pt >= 10 GeV and |eta| <= 1.44. The others are inferred too,
  // on an empty frame.
  bool passesSelection(double pt, double eta);

  // The barrel crystal of a supercluster with the highest energy; kNoSeed if there is none with E > 0.
  std::uint32_t seedOf(const std::vector<Hit>& supercluster);

  // Frames (n, 1, 32, 32) of an event's photons in one contiguous buffer that is reused from event to
  // event. Hits are binned directly into the frames: the 170 x 360 map, of which two photons need 3%,
  // is never made.
  class PhotonFrames {
  public:
    std::vector<float>& fill(const std::vector<Hit>& hits, const std::vector<std::uint32_t>& seeds);

  private:
    std::vector<float> buffer_;
  };

  // One score for each of n frames (n, 1, 32, 32). Not const: cms::Ort::ONNXRuntime wants to own its
  // input for the call, and swapping is cheaper than copying.
  using Engine = std::function<std::vector<float>(std::vector<float>& frames, std::size_t n)>;

  // Scores of an event, one call of the engine for all photons and none without photons.
  // Throws std::runtime_error if the engine does not return one score per photon.
  std::vector<float> scorePhotons(PhotonFrames& frames,
                                  const std::vector<Hit>& hits,
                                  const std::vector<std::uint32_t>& seeds,
                                  const Engine& engine);

}  // namespace electronphoton

#endif
