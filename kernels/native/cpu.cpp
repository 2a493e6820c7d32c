// Which of the builds this CPU can run.  Compiled for the baseline: it is loaded before anything is known.

#include <nanobind/nanobind.h>

namespace {

const char* isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512cd");
    return v3 && v4 ? "v4" : v3 ? "v3" : "v2";
#else
    return "generic";
#endif
}

}  // namespace

NB_MODULE(_cpu, m) { m.def("isa", &isa, "Name of the best build that this CPU can run."); }
