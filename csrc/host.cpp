// fastdiff._host: what was built, which instruction set runs, the noise contract in NumPy arrays, and
// launches on small tensors. pybind11, no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/dispatch.h"
#include "samples.h"
#include "small.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastdiff {
namespace {

// At most 2^34 elements make a sample: 2^32 groups of four.
void check_count(std::int64_t count) {
  if (count < 0 || count > std::int64_t{1} << 34) {
    throw std::invalid_argument("fastdiff: n must be from 0 to 2^34, got " + std::to_string(count));
  }
}

py::dict build_info() {
  return py::dict("compiler"_a = FASTDIFF_BUILD_INFO_COMPILER, "torch"_a = FASTDIFF_BUILD_INFO_TORCH,
                  "cuda"_a = FASTDIFF_BUILD_INFO_CUDA, "archs"_a = FASTDIFF_BUILD_INFO_ARCHS,
                  "git"_a = FASTDIFF_BUILD_INFO_GIT, "flags"_a = FASTDIFF_BUILD_INFO_FLAGS,
                  "levels"_a = built_levels());
}

// A seed is 64 bits; a signed one has the same bits.
std::uint64_t bits_of_seed(const py::int_& seed) {
  const auto bits = PyLong_AsUnsignedLongLongMask(seed.ptr());
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return bits;
}

std::array<std::uint32_t, 4> philox(const py::int_& seed, const std::array<std::uint32_t, 4>& counter) {
  const Words4 block = philox4x32_10({counter[0], counter[1], counter[2], counter[3]}, key_of(bits_of_seed(seed)));
  return {block.a, block.b, block.c, block.d};
}

py::array_t<std::uint32_t> words(const py::int_& seed, std::uint32_t draw, std::int64_t count) {
  check_count(count);
  const Key key = key_of(bits_of_seed(seed));
  py::array_t<std::uint32_t> result(count);
  std::uint32_t* out = result.mutable_data();
  for (std::int64_t i = 0; i < count; i += 4) {
    const Words4 block = philox4x32_10({static_cast<std::uint32_t>(i / 4), draw, 0u, 0u}, key);
    const std::uint32_t four[] = {block.a, block.b, block.c, block.d};
    for (std::int64_t k = 0; k < 4 && i + k < count; ++k) out[i + k] = four[k];
  }
  return result;
}

py::array_t<float> normals(const py::int_& seed, std::uint32_t draw, std::int64_t count,
                           const std::optional<std::string>& level) {
  check_count(count);
  const Kernels& loops = level ? kernels_for(level->c_str()) : kernels();
  const auto key = static_cast<std::int64_t>(bits_of_seed(seed));
  py::array_t<float> result(count);
  loops.normal(key, draw, 0, count, Dtype::kFloat, result.mutable_data());
  return result;
}

}  // namespace
}  // namespace fastdiff

PYBIND11_MODULE(_host, module) {
  using namespace fastdiff;
  module.doc() = "What was built, the CPU level, and the noise contract in NumPy arrays; no torch.";
  module.def("build_info", &build_info,
             "Compiler, torch, CUDA, architectures, commit, flags and CPU levels of this build.");
  module.def(
      "cpu_level", [] { return kernels().level; },
      "The instruction set in use: the best this machine runs, or FASTDIFF_CPU. Raises ValueError if that is not "
      "one of cpu_levels().");
  module.def("cpu_levels", &cpu_levels, "The built instruction sets that this machine can run, best first.");
  module.def("philox", &philox, "seed"_a, "counter"_a,
             "Philox4x32-10: four words of a 64-bit key and a counter of four words.");
  module.def("words", &words, "seed"_a, "draw"_a, "n"_a,
             "uint32 [n]: word i is word i % 4 of the block with counter (i // 4, draw, 0, 0).");
  module.def("normals", &normals, "seed"_a, "draw"_a, "n"_a, "level"_a = py::none(),
             "float32 [n]: the normals of a sample's first n elements; level forces an instruction set.");
  module.def("nearest_variance", &nearest_variance, "x"_a, "variances"_a,
             "For small CPU tensors: the places in variances [n] nearest to the variance of each sample of x, a list; "
             "None if x is not plain.");
  module.def("first_elements", &first_elements, "x"_a,
             "For small CPU tensors: the first element of each sample of x, a list; None if x is not plain.");
  py::class_<SmallLaunch>(module, "SmallLaunch", "A launch of a plan on small CPU tensors, without the operator.")
      .def(py::init<py::object, std::vector<int>, std::vector<std::uint32_t>, std::vector<py::object>, std::vector<int>,
                    bool, py::object, int, bool, bool>(),
           "table"_a, "inputs"_a, "draws"_a, "like"_a, "outputs"_a, "clip"_a, "make"_a, "rows"_a = -1,
           "measured"_a = false, "squares"_a = false)
      .def("pays", &SmallLaunch::pays, "Whether the operator would keep it on the calling thread, too.")
      .def("then", &SmallLaunch::then, "next"_a, "The launch that follows at once.")
      .def("run", &SmallLaunch::run, "slots"_a, "seeds"_a,
           "Read and write tensors in the list. How many were done, this launch and those that follow at once: the "
           "operator must see to the next.");
}
