// What dphpc/core/cublas.py calls of cuBLAS, on the host: its arguments as cublas_api.h has them, and what it refuses.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_TF32 = 77, ALGORITHM = -1 };

struct Handle {
    void *stream;
    void *workspace;
    size_t bytes;
};

static int fail(int status);

extern "C" {

int fail_next = SUCCESS;  // the status of the next call
int handles = 0;          // that exist
int turns = 0;            // from a stream to another

int cublasCreate_v2(void **handle) {
    if (fail_next) return fail(fail_next);
    *handle = new Handle{};
    ++handles;
    return SUCCESS;
}

int cublasDestroy_v2(void *handle) {
    delete static_cast<Handle *>(handle);
    --handles;
    return SUCCESS;
}

int cublasSetStream_v2(void *handle, void *stream) {
    if (fail_next) return fail(fail_next);
    *static_cast<Handle *>(handle) = {stream, nullptr, 0};  // the workspace is the default one again
    ++turns;
    return SUCCESS;
}

int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes) {
    if (fail_next) return fail(fail_next);
    auto h = static_cast<Handle *>(handle);
    h->workspace = workspace;
    h->bytes = bytes;
    return SUCCESS;
}

int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int a_type,
                 int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                 int compute, int algorithm);
}

static int fail(int status) {
    fail_next = SUCCESS;
    return status;
}

static double nearest(double x, bool tf32) {
    if (!tf32) return x;
    auto value = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits = (bits + 0x1000) & 0xffffe000;  // 10 bits behind the point
    std::memcpy(&value, &bits, 4);
    return value;
}

template <typename Real>
static void multiply(bool ta, bool tb, int m, int n, int k, const void *alpha, const void *va, int lda, const void *vb,
                     int ldb, const void *beta, void *vc, int ldc, bool tf32) {
    auto a = static_cast<const Real *>(va), b = static_cast<const Real *>(vb);
    auto c = static_cast<Real *>(vc);
    Real one = *static_cast<const Real *>(alpha), kept = *static_cast<const Real *>(beta);
    for (ptrdiff_t j = 0; j < n; ++j)
        for (ptrdiff_t i = 0; i < m; ++i) {
            double sum = 0;
            for (ptrdiff_t l = 0; l < k; ++l)
                sum += nearest(ta ? a[l + i * lda] : a[i + l * lda], tf32) *
                       nearest(tb ? b[j + l * ldb] : b[l + j * ldb], tf32);
            Real &out = c[i + j * ldc];
            out = static_cast<Real>(one * sum) + (kept == 0 ? Real(0) : kept * out);  // where 0, what is there is not read
        }
}

int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a, int a_type,
                 int lda, const void *b, int b_type, int ldb, const void *beta, void *c, int c_type, int ldc,
                 int compute, int algorithm) {
    if (fail_next) return fail(fail_next);
    auto h = static_cast<Handle *>(handle);
    if (!h) return NOT_INITIALIZED;
    if (!h->workspace || h->bytes < (size_t(32) << 20)) return INTERNAL_ERROR;  // it would take memory of its own
    if (m < 0 || n < 0 || k < 0 || transa < 0 || transa > 1 || transb < 0 || transb > 1) return INVALID_VALUE;
    auto most = [](int x, int y) { return x > y ? x : y; };
    if (lda < most(1, transa ? k : m) || ldb < most(1, transb ? n : k) || ldc < most(1, m)) return INVALID_VALUE;
    bool wide = compute == COMPUTE_64F, tf32 = compute == COMPUTE_TF32;
    int type = wide ? R_64F : R_32F;
    if (!wide && !tf32 && compute != COMPUTE_32F) return NOT_SUPPORTED;
    if (a_type != type || b_type != type || c_type != type || algorithm != ALGORITHM) return NOT_SUPPORTED;
    static_cast<void **>(h->workspace)[0] = h->stream;  // who worked in it
    auto run = wide ? multiply<double> : multiply<float>;
    run(transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, tf32);
    return SUCCESS;
}
