#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace electronphoton {

  namespace {
    constexpr std::uint32_t kBarrel = (3u << 28) | (1u << 25);
    constexpr std::uint32_t kDetectorMask = 0xFE000000u;
    constexpr std::uint32_t kPositiveZ = 0x10000u;
    constexpr int kMaxIeta = kRows / 2;
  }  // namespace

  Crystal decode(std::uint32_t rawId) {
    const int ieta = (rawId >> 9) & 0x7F;
    const int iphi = rawId & 0x1FF;
    return {rawId & kPositiveZ ? ieta : -ieta, iphi};
  }

  bool isBarrel(std::uint32_t rawId) {
    if ((rawId & kDetectorMask) != kBarrel)
      return false;
    const Crystal crystal = decode(rawId);
    const int absIeta = std::abs(crystal.ieta);
    return absIeta >= 1 && absIeta <= kMaxIeta && crystal.iphi >= 1 && crystal.iphi <= kColumns;
  }

  int rowOf(const Crystal& crystal) {
    // There is no ieta 0.
    return (crystal.ieta > 0 ? crystal.ieta - 1 : crystal.ieta) + kMaxIeta;
  }

  int columnOf(const Crystal& crystal) { return crystal.iphi - 1; }

  bool passesSelection(double pt, double eta) { return !(pt < 10. || std::abs(eta) > 1.44); }

  std::uint32_t seedOf(const std::vector<Hit>& supercluster) {
    std::uint32_t seed = kNoSeed;
    float highest = 0.f;
    for (const Hit& hit : supercluster) {
      if (hit.energy > highest && isBarrel(hit.rawId)) {
        highest = hit.energy;
        seed = hit.rawId;
      }
    }
    return seed;
  }

  std::vector<float>& PhotonFrames::fill(const std::vector<Hit>& hits, const std::vector<std::uint32_t>& seeds) {
    struct Corner {
      int row, column;
      std::size_t offset;
    };
    buffer_.assign(seeds.size() * kPixels, 0.f);
    std::vector<Corner> corners;
    corners.reserve(seeds.size());
    for (std::size_t photon = 0; photon < seeds.size(); ++photon) {
      if (!isBarrel(seeds[photon]))
        continue;
      const Crystal seed = decode(seeds[photon]);
      corners.push_back({rowOf(seed) - kSeed, columnOf(seed) - kSeed, photon * kPixels});
    }
    if (corners.empty())
      return buffer_;

    for (const Hit& hit : hits) {
      if (!(hit.energy > 0.f) || !isBarrel(hit.rawId))
        continue;
      const Crystal crystal = decode(hit.rawId);
      const int row = rowOf(crystal);
      const int column = columnOf(crystal);
      for (const Corner& corner : corners) {
        const int y = row - corner.row;
        int x = column - corner.column;  // -344..374
        if (x >= kColumns)
          x -= kColumns;
        else if (x < 0)
          x += kColumns;
        if (y >= 0 && y < kSide && x < kSide)
          buffer_[corner.offset + y * kSide + x] = hit.energy;
      }
    }
    return buffer_;
  }

  std::vector<float> scorePhotons(PhotonFrames& frames,
                                  const std::vector<Hit>& hits,
                                  const std::vector<std::uint32_t>& seeds,
                                  const Engine& engine) {
    if (seeds.empty())
      return {};
    std::vector<float> scores = engine(frames.fill(hits, seeds), seeds.size());
    if (scores.size() != seeds.size())
      throw std::runtime_error("expected one score for each of " + std::to_string(seeds.size()) + " photons, found " +
                               std::to_string(scores.size()));
    return scores;
  }

}  // namespace electronphoton
