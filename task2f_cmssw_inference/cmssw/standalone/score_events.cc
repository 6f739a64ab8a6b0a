// Scores events outside CMSSW with the frame code of the producer and times every event.
//
// score_events --library libonnxruntime.so --model m.onnx --events events.bin --out scores.csv
//              [--frames frames.f32] [--session-per-event] [--warmup 0]
//
// Event file, little-endian, without gaps:
//   int64 n_events, n_hits, n_photons; int64 hit_offsets[n_events + 1]; int32 crystal[n_hits][2];
//   float32 energy[n_hits]; int64 photon_offsets[n_events + 1]; int32 seed[n_photons][2]
//   (crystals are ieta, iphi; seed 0, 0: a photon without a frame)
// Writes event, photon, score as CSV (-1 for a photon without a frame), the frames (n, 1, 32, 32)
// float32 of the photons that have one if wanted, and one JSON object to the standard output. Exit
// code 2 with one line for input that cannot be used.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <sstream>

#include "E2EInference/ElectronPhoton/interface/PhotonFrames.h"
#include "onnxruntime_api.h"

namespace {
  using electronphoton::Crystal;
  using electronphoton::Hit;
  using Clock = std::chrono::steady_clock;

  const std::string kInput = "modelInput";
  const std::string kOutput = "modelOutput";

  struct Event {
    std::vector<Hit> hits;
    std::vector<Crystal> seeds;
  };

  struct Options {
    std::map<std::string, std::string> values{{"warmup", "0"}};
    bool sessionPerEvent = false;

    const std::string& text(const std::string& name) const {
      const auto found = values.find(name);
      if (found == values.end())
        throw std::runtime_error("command line: expected --" + name + ", found none; add it");
      return found->second;
    }

    long number(const std::string& name, long lowest) const {
      const std::string& value = text(name);
      char* end = nullptr;
      const long number = std::strtol(value.c_str(), &end, 10);
      if (value.empty() || *end != '\0' || number < lowest)
        throw std::runtime_error("command line: expected an integer of at least " + std::to_string(lowest) + " for --" +
                                 name + ", found '" + value + "'; correct it");
      return number;
    }
  };

  Options parse(int count, char** arguments) {
    static const std::set<std::string> known{
        "library", "model", "events", "out", "frames", "warmup"};
    Options options;
    for (int i = 1; i < count; ++i) {
      const std::string argument = arguments[i];
      const std::string name = argument.rfind("--", 0) == 0 ? argument.substr(2) : "";
      if (name == "session-per-event") {
        options.sessionPerEvent = true;
      } else if (known.count(name) && i + 1 < count) {
        options.values[name] = arguments[++i];
      } else {
        throw std::runtime_error("command line: expected an option with its value, found '" + argument +
                                 "'; see the first lines of score_events.cc");
      }
    }
    return options;
  }

  // Reads arrays one after the other and knows where the file ends.
  class EventFile {
  public:
    explicit EventFile(const std::string& path) : path_(path) {
      std::ifstream file(path, std::ios::binary);
      if (!file)
        fail("an event file", "no file that can be read", "write one with write_events of build.py");
      std::ostringstream content;
      content << file.rdbuf();
      content_ = content.str();
    }

    template <typename T>
    std::vector<T> array(std::int64_t count) {
      const std::size_t left = content_.size() - position_;
      if (count < 0 || static_cast<std::uint64_t>(count) > left / sizeof(T))
        fail(count < 0 ? "counts of zero or more" : std::to_string(count) + " more values",
             std::to_string(left) + " bytes",
             "write it again with write_events of build.py");
      std::vector<T> values(count);
      if (count > 0)
        std::memcpy(values.data(), content_.data() + position_, count * sizeof(T));
      position_ += count * sizeof(T);
      return values;
    }

    std::vector<std::int64_t> offsets(std::int64_t events, std::int64_t total) {
      // Also keeps events + 1 from overflowing.
      const bool sensible = events >= 0 && static_cast<std::uint64_t>(events) < content_.size();
      std::vector<std::int64_t> values = array<std::int64_t>(sensible ? events + 1 : -1);
      bool good = values.front() == 0 && values.back() == total;
      for (std::size_t i = 1; i < values.size(); ++i)
        good = good && values[i - 1] <= values[i];
      if (!good)
        fail("offsets that rise from 0 to " + std::to_string(total), "others", "write it again with write_events");
      return values;
    }

    void finish() const {
      if (position_ != content_.size())
        fail("the end of the file",
             std::to_string(content_.size() - position_) + " more bytes",
             "write it again with write_events of build.py");
    }

  private:
    [[noreturn]] void fail(const std::string& expected, const std::string& found, const std::string& action) const {
      throw std::runtime_error(path_ + ": expected " + expected + ", found " + found + "; " + action);
    }

    std::string path_;
    std::string content_;
    std::size_t position_ = 0;
  };

  static_assert(sizeof(Crystal) == 2 * sizeof(std::int32_t), "crystals are read as pairs of int32");

  std::vector<Event> readEvents(const std::string& path) {
    EventFile file(path);
    const auto counts = file.array<std::int64_t>(3);
    const auto hitOffsets = file.offsets(counts[0], counts[1]);
    const auto crystals = file.array<Crystal>(counts[1]);
    const auto energies = file.array<float>(counts[1]);
    const auto photonOffsets = file.offsets(counts[0], counts[2]);
    const auto seeds = file.array<Crystal>(counts[2]);
    file.finish();

    std::vector<Event> events(counts[0]);
    for (std::size_t i = 0; i < events.size(); ++i) {
      for (std::int64_t j = hitOffsets[i]; j < hitOffsets[i + 1]; ++j)
        events[i].hits.push_back({crystals[j], energies[j]});
      events[i].seeds.assign(seeds.begin() + photonOffsets[i], seeds.begin() + photonOffsets[i + 1]);
    }
    return events;
  }

  std::string list(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names)
      text += (text.empty() ? "'" : ", '") + name + "'";
    return text;
  }

  // Refuses what RecoE2E would score silently wrong: other names, more channels, a fixed batch.
  void checkModel(const ort::Session& session, const std::string& model) {
    if (session.inputNames() != std::vector<std::string>{kInput})
      throw std::runtime_error(model + ": expected one input '" + kInput + "', found " + list(session.inputNames()) +
                               "; export it with input_names=['" + kInput + "']");
    if (session.outputNames() != std::vector<std::string>{kOutput})
      throw std::runtime_error(model + ": expected one output '" + kOutput + "', found " +
                               list(session.outputNames()) + "; export it with output_names=['" + kOutput + "']");
    const auto shape = session.inputShape();
    if (shape != std::vector<std::int64_t>{-1, 1, electronphoton::kSide, electronphoton::kSide}) {
      std::string found;
      for (std::int64_t size : shape)
        found += (found.empty() ? "" : ", ") + (size < 0 ? std::string("free") : std::to_string(size));
      throw std::runtime_error(model + ": expected an input of shape (free, 1, 32, 32), found (" + found +
                               "); export one channel with a dynamic batch");
    }
  }

  std::unique_ptr<ort::Session> openSession(const ort::Library& library, const std::string& model) {
    if (!std::ifstream(model))
      throw std::runtime_error(model + ": expected an ONNX model, found no file that can be read; export it first");
    try {
      return std::make_unique<ort::Session>(library, model, 1);
    } catch (const std::runtime_error& error) {
      std::string message = error.what();
      for (char& character : message)
        if (character == '\n')
          character = ' ';
      throw std::runtime_error(model + ": expected a model that ONNX Runtime " + library.version() +
                               " can load, found: " + message + "; export it with opset 10 and IR version 5");
    }
  }

  double microseconds(Clock::time_point begin) {
    return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  }

  std::string jsonList(const std::vector<double>& values) {
    std::string text = "[";
    char number[32];
    for (double value : values) {
      std::snprintf(number, sizeof number, "%s%.3f", text.size() > 1 ? ", " : "", value);
      text += number;
    }
    return text + "]";
  }

  void checkWritten(std::ostream& file, const std::string& path) {
    if (!file.flush())
      throw std::runtime_error(path + ": expected a file that can be written, found none; check folder and disk");
  }

  int score(const Options& options) {
    const std::string model = options.text("model");
    const std::size_t warmup = options.number("warmup", 0);
    const std::vector<Event> events = readEvents(options.text("events"));
    const ort::Library library(options.text("library"));

    auto begin = Clock::now();
    std::unique_ptr<ort::Session> session = openSession(library, model);
    const double firstSession = microseconds(begin) / 1e3;
    checkModel(*session, model);
    if (options.sessionPerEvent)
      session.reset();  // its environment too, as after an event of the reference

    electronphoton::PhotonFrames frames;
    std::vector<double> sessionMs;
    const auto engine = [&](std::vector<float>& values, std::size_t n) {
      if (options.sessionPerEvent) {
        const auto opened = Clock::now();
        session = std::make_unique<ort::Session>(library, model, 1);
        sessionMs.push_back(microseconds(opened) / 1e3);
      }
      return session->run(
          kInput, kOutput, values, {static_cast<std::int64_t>(n), 1, electronphoton::kSide, electronphoton::kSide});
    };
    const auto process = [&](const Event& event) {
      std::vector<float> scores = electronphoton::scorePhotons(frames, event.hits, event.seeds, engine);
      if (options.sessionPerEvent)
        session.reset();
      return scores;
    };

    for (std::size_t i = 0; i < warmup && !events.empty(); ++i)
      process(events[i % events.size()]);
    sessionMs.clear();

    std::vector<double> times;
    std::vector<std::vector<float>> scores;
    for (const Event& event : events) {
      begin = Clock::now();
      std::vector<float> found = process(event);
      times.push_back(microseconds(begin));
      scores.push_back(std::move(found));
    }

    std::size_t photons = 0;
    std::ofstream out(options.text("out"));
    out << "event,photon,score\n";
    for (std::size_t i = 0; i < scores.size(); ++i)
      for (std::size_t j = 0; j < scores[i].size(); ++j, ++photons) {
        char line[64];
        std::snprintf(line, sizeof line, "%zu,%zu,%.9g\n", i, j, scores[i][j]);
        out << line;
      }
    checkWritten(out, options.text("out"));

    if (options.values.count("frames")) {
      std::ofstream dump(options.text("frames"), std::ios::binary);
      for (const Event& event : events) {
        const std::vector<float>& values = frames.fill(event.hits, event.seeds);
        dump.write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      }
      checkWritten(dump, options.text("frames"));
    }

    double sessions = firstSession;
    if (!sessionMs.empty()) {
      sessions = 0.;
      for (double value : sessionMs)
        sessions += value / sessionMs.size();
    }
    std::cout << "{\"engine\": \"" << library.version() << "\", \"mode\": \""
              << (options.sessionPerEvent ? "session per event" : "one session")
              << "\", \"events\": " << events.size() << ", \"photons\": " << photons
              << ", \"session_ms\": " << sessions << ", \"event_us\": " << jsonList(times) << "}" << std::endl;
    return 0;
  }
}  // namespace

int main(int count, char** arguments) {
  try {
    return score(parse(count, arguments));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}
