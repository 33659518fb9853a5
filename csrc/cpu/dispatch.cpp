#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace fastdiff {

#if defined(__x86_64__)
extern const Kernels kernels_v2;
extern const Kernels kernels_v3;
extern const Kernels kernels_v4;
#else
extern const Kernels kernels_generic;
#endif

namespace {

struct Candidate {
  const Kernels& table;
  bool runs_here;
};

// What was compiled, best first. __builtin_cpu_supports asks the processor and the operating system; the features named
// are those by which -march=x86-64-v2, v3 and v4 differ.
std::vector<Candidate> candidates() {
#if defined(__x86_64__)
  const bool v2 =
      __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return {{kernels_v4, v4}, {kernels_v3, v3}, {kernels_v2, v2}};
#else
  return {{kernels_generic, true}};
#endif
}

// "v3" and "x86-64-v3" name the same level.
bool is_named(const Kernels& table, const std::string& name) {
  const std::string level = table.level;
  return name == level || (!name.empty() && "x86-64-" + name == level);
}

const Kernels& find(const std::string& name, const char* source) {
  std::string names;
  for (const auto& [table, runs_here] : candidates()) {
    if (!runs_here) continue;
    if (is_named(table, name)) return table;
    names += (names.empty() ? "" : ", ") + std::string(table.level);
  }
  throw std::invalid_argument("fastdiff: " + std::string(source) + " must be one of the instruction sets that this " +
                              "machine can run (" + names + "), got '" + name + "'");
}

const Kernels& choose() {
  const char* forced = std::getenv("FASTDIFF_CPU");
  if (forced != nullptr && *forced != '\0') return find(forced, "FASTDIFF_CPU");
  for (const auto& [table, runs_here] : candidates()) {
    if (runs_here) return table;
  }
  throw std::runtime_error("fastdiff: the processor is older than x86-64-v2 (SSE4.2)");
}

}  // namespace

std::vector<const char*> built_levels() {
  std::vector<const char*> names;
  for (const auto& candidate : candidates()) names.push_back(candidate.table.level);
  return names;
}

std::vector<const char*> cpu_levels() {
  std::vector<const char*> names;
  for (const auto& [table, runs_here] : candidates()) {
    if (runs_here) names.push_back(table.level);
  }
  return names;
}

const Kernels& kernels_for(const char* level) { return find(level, "level"); }

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastdiff
