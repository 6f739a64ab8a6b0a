// Stand-ins for the classes of CMSSW and RecoE2E that Model.cc, ElectronPhotonProducer.cc and the
// replacement of EGTagger.cc use, to compile and run these files without CMSSW. They mimic
// signatures (as of CMSSW 12_0) and the least behaviour a test needs; that a file compiles here does
// not prove that it compiles in a release.
#ifndef tests_cmssw_mocks_cmssw_h
#define tests_cmssw_mocks_cmssw_h

#include <algorithm>
#include <any>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime_api.h"

namespace cms {
  class Exception : public std::exception {
  public:
    explicit Exception(const std::string& category) : text_(category + ": ") {}
    template <typename T>
    Exception& operator<<(const T& value) {
      std::ostringstream stream;
      stream << value;
      text_ += stream.str();
      return *this;
    }
    const char* what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
  };
}  // namespace cms

namespace cms::Ort {
  using FloatArrays = std::vector<std::vector<float>>;

  // On a real engine: the library named in E2E_ONNXRUNTIME_LIBRARY. Its errors are those of the
  // wrapper in PhysicsTools/ONNXRuntime.
  class ONNXRuntime {
  public:
    explicit ONNXRuntime(const std::string& path, const void* = nullptr)
        : library_(std::getenv("E2E_ONNXRUNTIME_LIBRARY")), session_(library_, path, 1), outputs_(session_.outputNames()) {
      ++created();
    }
    ONNXRuntime(const ONNXRuntime&) = delete;

    FloatArrays run(const std::vector<std::string>& inputs,
                    FloatArrays& values,
                    const std::vector<std::vector<std::int64_t>>& = {},
                    const std::vector<std::string>& outputs = {},
                    std::int64_t batch = 1) const {
      ++runs();
      const std::string name = session_.inputNames().at(0);
      if (inputs.at(0) != name)
        throw Exception("RuntimeError") << "Input " << name << " is not provided!";
      std::vector<std::int64_t> shape = session_.inputShape();
      shape[0] = batch;
      const std::int64_t length =
          std::accumulate(shape.begin(), shape.end(), std::int64_t(1), std::multiplies<std::int64_t>());
      if (length != static_cast<std::int64_t>(values.at(0).size()))
        throw Exception("RuntimeError") << "Input array " << name << " has a wrong size of " << values.at(0).size()
                                        << ", expected " << length;
      return {session_.run(name, outputs.at(0), values.at(0), shape)};
    }

    const std::vector<std::string>& getOutputNames() const { return outputs_; }

    static int& created() {
      static int count = 0;
      return count;
    }
    static int& runs() {
      static int count = 0;
      return count;
    }

  private:
    ::ort::Library library_;
    ::ort::Session session_;
    std::vector<std::string> outputs_;
  };
}  // namespace cms::Ort

enum EcalSubdetector { EcalBarrel = 1, EcalEndcap = 2 };

class DetId {
public:
  enum Detector { Ecal = 3 };
  DetId(std::uint32_t id) : id_(id) {}
  std::uint32_t rawId() const { return id_; }
  Detector det() const { return Detector(id_ >> 28); }
  int subdetId() const { return (id_ >> 25) & 7; }

protected:
  std::uint32_t id_;
};

class EBDetId : public DetId {
public:
  explicit EBDetId(const DetId& id) : DetId(id) {}
  int ieta() const { return (id_ & 0x10000 ? 1 : -1) * int((id_ >> 9) & 0x7F); }
  int iphi() const { return id_ & 0x1FF; }
};

class EcalRecHit {
public:
  EcalRecHit(DetId id, float energy) : id_(id), energy_(energy) {}
  DetId id() const { return id_; }
  float energy() const { return energy_; }

private:
  DetId id_;
  float energy_;
};

class EcalRecHitCollection : public std::vector<EcalRecHit> {
public:
  const_iterator find(DetId id) const {
    return std::find_if(begin(), end(), [&](const EcalRecHit& hit) { return hit.id().rawId() == id.rawId(); });
  }
};

namespace reco {
  class SuperCluster {
  public:
    explicit SuperCluster(std::vector<std::pair<DetId, float>> hits) : hits_(std::move(hits)) {}
    const std::vector<std::pair<DetId, float>>& hitsAndFractions() const { return hits_; }

  private:
    std::vector<std::pair<DetId, float>> hits_;
  };
  using SuperClusterRef = std::shared_ptr<const SuperCluster>;

  class Photon {
  public:
    Photon(double pt, double eta, SuperClusterRef cluster) : pt_(pt), eta_(eta), cluster_(std::move(cluster)) {}
    double pt() const { return pt_; }
    double eta() const { return eta_; }
    SuperClusterRef superCluster() const { return cluster_; }

  private:
    double pt_, eta_;
    SuperClusterRef cluster_;
  };
  using PhotonCollection = std::vector<Photon>;
}  // namespace reco

namespace edm {
  using ProductID = int;

  class InputTag {
  public:
    explicit InputTag(std::string label, const std::string& = "") : label_(std::move(label)) {}
    const std::string& label() const { return label_; }

  private:
    std::string label_;
  };

  template <typename T>
  class EDGetTokenT {
  public:
    explicit EDGetTokenT(std::string label) : label(std::move(label)) {}
    std::string label;
  };

  template <typename T>
  class Handle {
  public:
    Handle(const T* product, ProductID id) : product_(product), id_(id) {}
    ProductID id() const { return id_; }
    const T& operator*() const { return *product_; }
    const T* operator->() const { return product_; }
    const T* product() const { return product_; }

  private:
    const T* product_;
    ProductID id_;
  };

  template <typename T>
  class RefProd {
  public:
    explicit RefProd(const Handle<T>& handle) : product_(handle.product()) {}
    const T* operator->() const { return product_; }

  private:
    const T* product_;
  };

  template <typename KeyRefProd, typename Values>
  class AssociationVector {
  public:
    explicit AssociationVector(KeyRefProd keys) : values_(keys->size()) {}
    void setValue(std::size_t i, const typename Values::value_type& value) { values_.at(i) = value; }
    const typename Values::value_type& value(std::size_t i) const { return values_.at(i); }

  private:
    Values values_;
  };

  template <typename T>
  class ValueMap {
  public:
    class Filler {
    public:
      explicit Filler(ValueMap& map) : map_(map) {}
      template <typename H, typename I>
      void insert(const H& handle, I begin, I end) {
        if (static_cast<std::size_t>(end - begin) != handle->size())
          throw cms::Exception("InvalidReference") << "handle and values have different sizes";
        values_[handle.id()].assign(begin, end);
      }
      void fill() { map_.values_ = values_; }

    private:
      ValueMap& map_;
      std::map<ProductID, std::vector<T>> values_;
    };
    T get(ProductID id, std::size_t index) const { return values_.at(id).at(index); }

  private:
    std::map<ProductID, std::vector<T>> values_;
  };

  class EventSetup {};

  class Event {
  public:
    template <typename T>
    Handle<T> getHandle(const EDGetTokenT<T>& token) const {
      return Handle<T>(std::any_cast<T>(&inputs.at(token.label)), 7);
    }
    template <typename T>
    const T& get(const EDGetTokenT<T>& token) const {
      return *std::any_cast<T>(&inputs.at(token.label));
    }
    template <typename T>
    void put(std::unique_ptr<T> product, const std::string& instance = "") {
      outputs[instance] = *product;
    }
    std::map<std::string, std::any> inputs, outputs;
  };

  // Names are looked up as they are, and only when they are used: as in edmWriteConfigs.
  class FileInPath {
  public:
    explicit FileInPath(std::string name) : name_(std::move(name)) {}
    std::string fullPath() const {
      if (!std::ifstream(name_).good())
        throw cms::Exception("FileInPathError") << "Unable to find file " << name_;
      return name_;
    }

  private:
    std::string name_;
  };

  class ParameterSet {
  public:
    template <typename T>
    T getParameter(const std::string& name) const {
      return std::any_cast<T>(values.at(name));
    }
    std::map<std::string, std::any> values;
  };

  class ParameterSetDescription {
  public:
    template <typename T>
    void add(const std::string& name, const T& value) {
      defaults.values[name] = value;
    }
    ParameterSet defaults;
  };

  class ConfigurationDescriptions {
  public:
    void addWithDefaultLabel(const ParameterSetDescription& description) { defaults = description.defaults; }
    void addDefault(const ParameterSetDescription& description) { defaults = description.defaults; }
    ParameterSet defaults;
  };

  template <typename T>
  struct GlobalCache {};

  namespace stream {
    template <typename T>
    class EDProducer;

    template <typename T>
    class EDProducer<GlobalCache<T>> {
    public:
      virtual ~EDProducer() = default;
      virtual void produce(Event&, const EventSetup&) = 0;
      void setCache(const T* cache) { cache_ = cache; }

    protected:
      template <typename P>
      EDGetTokenT<P> consumes(const InputTag& tag) {
        return EDGetTokenT<P>(tag.label());
      }
      template <typename P>
      void produces(const std::string& = "") {}
      const T* globalCache() const { return cache_; }

    private:
      const T* cache_ = nullptr;
    };
  }  // namespace stream
}  // namespace edm

namespace reco {
  using PhotonRefProd = edm::RefProd<PhotonCollection>;
}

namespace e2e {
  using Frame3D = std::vector<std::vector<std::vector<float>>>;
  using Frame4D = std::vector<Frame3D>;
  using PhoPredCollection = edm::AssociationVector<reco::PhotonRefProd, std::vector<float>>;
}  // namespace e2e

#define DEFINE_FWK_MODULE(type) using DefinedModule = type

#endif
