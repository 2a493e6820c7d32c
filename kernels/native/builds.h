// The builds of the kernels that this CPU can run.
#pragma once

#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace dphpc {

#if defined(__x86_64__)
// Zen 4 (family 19h with AVX-512) executes 512-bit instructions in two halves: they gain nothing, and more lanes of
// their wider blocks stay empty (benchmarks/NOTES.md).
inline bool halves_avx512() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx) || ebx != signature_AMD_ebx) return false;
    __get_cpuid(1, &eax, &ebx, &ecx, &edx);
    const unsigned family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
    return family == 0x19;
}
#endif

// Names of the builds that this CPU can run, the fastest last.
inline std::vector<const char*> builds() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512cd");
    if (v4 && halves_avx512()) return {"v2", "v4", "v3"};
    if (v4) return {"v2", "v3", "v4"};
    if (v3) return {"v2", "v3"};
    return {"v2"};
#else
    return {"generic"};
#endif
}

}  // namespace dphpc
