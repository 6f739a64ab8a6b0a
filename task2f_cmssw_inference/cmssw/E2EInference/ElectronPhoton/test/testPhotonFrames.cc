// Unit test of the frames and of what is done with the scores: `scram b runtests`, or any C++17
// compiler. Prints every statement that does not hold and exits with their number.

#include <iostream>
#include <stdexcept>

#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"

using namespace electronphoton;

namespace {
  int failures = 0;

  void check(bool holds, const char* statement) {
    if (holds)
      return;
    ++failures;
    std::cerr << "does not hold: " << statement << std::endl;
  }

  bool same(const Crystal& a, const Crystal& b) { return a.ieta == b.ieta && a.iphi == b.iphi; }

  void selection() {
    check(passesSelection(10., 1.44) && passesSelection(50., -1.44), "photons at the cuts are kept");
    check(!passesSelection(9.99, 0.) && !passesSelection(50., -1.45), "photons beyond the cuts are dropped");
  }

  void seeds() {
    const Crystal weak{20, 100}, strong{20, 101}, none{};
    check(same(seedOf({{weak, 3.f}, {strong, 7.f}, {none, 90.f}}), strong), "the seed is the highest barrel crystal");
    check(!isBarrel(seedOf({{none, 90.f}})), "a cluster outside the barrel has no seed");
    check(!isBarrel(seedOf({{weak, 0.f}})), "a cluster without energy has no seed");
    check(rowOf({-85, 1}) == 0 && rowOf({-1, 1}) == 84 && rowOf({1, 1}) == 85 && rowOf({85, 1}) == 169,
          "rows run from 0 to 169 without a gap at ieta 0");
  }

  void frames() {
    PhotonFrames frames;
    const std::vector<float>& values =
        frames.fill({{{20, 1}, 50.f}, {{21, 1}, 2.f}, {{20, 360}, 3.f}, {{19, 2}, -4.f}}, {{20, 1}, {}});
    const auto at = [&](int row, int column) { return values[row * kSide + column]; };
    check(values.size() == kPixels, "only photons with a seed have a frame");
    check(at(15, 15) == 50.f, "the seed is at [15][15]");
    check(at(16, 15) == 2.f, "rows run along eta");
    check(at(15, 14) == 3.f, "phi wraps");
    check(at(14, 16) == 0.f, "hits without energy are dropped");
  }

  void scores() {
    PhotonFrames frames;
    int calls = 0;
    const Engine engine = [&](std::vector<float>& values, std::size_t n) {
      ++calls;
      return std::vector<float>(values.size() == n * kPixels ? n : 0, 0.5f);
    };
    const std::vector<Hit> hits{{{20, 1}, 50.f}};
    check(scorePhotons(frames, hits, {}, engine).empty() && calls == 0, "an event without photons runs nothing");
    check(scorePhotons(frames, hits, {{}, {}}, engine) == std::vector<float>{kNoScore, kNoScore} && calls == 0,
          "photons without a frame score -1 and run nothing");
    check(scorePhotons(frames, hits, {{20, 1}, {}, {20, 1}}, engine) == std::vector<float>{0.5f, kNoScore, 0.5f} &&
              calls == 1,
          "one call an event, every score at its photon");
    bool refused = false;
    try {
      scorePhotons(frames, hits, {{20, 1}}, [](std::vector<float>&, std::size_t) { return std::vector<float>(2); });
    } catch (const std::runtime_error&) {
      refused = true;
    }
    check(refused, "another number of scores is refused");
  }
}  // namespace

int main() {
  selection();
  seeds();
  frames();
  scores();
  return failures;
}
