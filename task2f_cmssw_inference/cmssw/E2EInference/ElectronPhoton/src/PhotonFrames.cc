#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace electronphoton {

  bool isBarrel(const Crystal& crystal) {
    const int absolute = std::abs(crystal.ieta);
    return absolute >= 1 && absolute <= kMaxIeta && crystal.iphi >= 1 && crystal.iphi <= kColumns;
  }

  int rowOf(const Crystal& crystal) {
    // There is no ieta 0.
    return (crystal.ieta > 0 ? crystal.ieta - 1 : crystal.ieta) + kMaxIeta;
  }

  int columnOf(const Crystal& crystal) { return crystal.iphi - 1; }

  bool passesSelection(double pt, double eta) { return !(pt < 10. || std::abs(eta) > 1.44); }

  Crystal seedOf(const std::vector<Hit>& supercluster) {
    Crystal seed;
    float highest = 0.f;
    for (const Hit& hit : supercluster) {
      if (hit.energy > highest && isBarrel(hit.crystal)) {
        highest = hit.energy;
        seed = hit.crystal;
      }
    }
    return seed;
  }

  std::vector<float>& PhotonFrames::fill(const std::vector<Hit>& hits, const std::vector<Crystal>& seeds) {
    struct Corner {
      int row, column;
    };
    std::vector<Corner> corners;
    corners.reserve(seeds.size());
    for (const Crystal& seed : seeds)
      if (isBarrel(seed))
        corners.push_back({rowOf(seed) - kSeed, columnOf(seed) - kSeed});
    buffer_.assign(corners.size() * kPixels, 0.f);
    if (corners.empty())
      return buffer_;

    for (const Hit& hit : hits) {
      if (!(hit.energy > 0.f) || !isBarrel(hit.crystal))
        continue;
      const int row = rowOf(hit.crystal);
      const int column = columnOf(hit.crystal);
      for (std::size_t frame = 0; frame < corners.size(); ++frame) {
        const int y = row - corners[frame].row;
        int x = column - corners[frame].column;  // -344..374
        if (x >= kColumns)
          x -= kColumns;
        else if (x < 0)
          x += kColumns;
        if (y >= 0 && y < kSide && x < kSide)
          buffer_[frame * kPixels + y * kSide + x] = hit.energy;
      }
    }
    return buffer_;
  }

  std::vector<float> scoreFrames(std::vector<float>& frames, const std::vector<bool>& hasFrame, const Engine& engine) {
    std::vector<float> scores(hasFrame.size(), kNoScore);
    const std::size_t n = std::count(hasFrame.begin(), hasFrame.end(), true);
    if (n == 0)
      return scores;
    const std::vector<float> found = engine(frames, n);
    if (found.size() != n)
      throw std::runtime_error("expected one score for each of " + std::to_string(n) + " frames, found " +
                               std::to_string(found.size()));
    std::size_t next = 0;
    for (std::size_t photon = 0; photon < scores.size(); ++photon)
      if (hasFrame[photon])
        scores[photon] = found[next++];
    return scores;
  }

  std::vector<float> scorePhotons(PhotonFrames& frames,
                                  const std::vector<Hit>& hits,
                                  const std::vector<Crystal>& seeds,
                                  const Engine& engine) {
    std::vector<bool> hasFrame;
    for (const Crystal& seed : seeds)
      hasFrame.push_back(isBarrel(seed));
    return scoreFrames(frames.fill(hits, seeds), hasFrame, engine);
  }

}  // namespace electronphoton
