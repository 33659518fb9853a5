// <immintrin.h>, where there is one.
#pragma once

#if defined(__x86_64__)
#pragma GCC diagnostic push
#if !defined(__clang__)  // GCC bug 105593: warnings inside its own AVX-512 functions
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
