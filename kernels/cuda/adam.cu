// One step of Adam or AdamW on all arrays at once; formulas in dphpc/ops/adam/contract.py, the arithmetic of
// kernels/native/adam.h.  `Real` is defined in front of this text.
namespace dphpc {

// Twins of these structs: dphpc/ops/adam/cuda.py.
struct Step {
    Real size, keep, added, beta1, beta2, correction2, epsilon;
};

// What one block changes: n consecutive values.
struct Piece {
    const Real* gradient;
    Real *value, *first, *second;
    long long n;
};

// Does nothing if `norm` is given and not finite.
extern "C" __global__ void adam(const Step s, const Piece* pieces, const double* norm) {
    if (norm && !(*norm - *norm == 0.0)) return;
    const Piece piece = pieces[blockIdx.x];
    for (int i = threadIdx.x; i < piece.n; i += blockDim.x) {
        const Real g = piece.gradient[i] + s.added * piece.value[i];
        const Real first = piece.first[i] + (Real(1) - s.beta1) * (g - piece.first[i]);
        const Real second = s.beta2 * piece.second[i] + (Real(1) - s.beta2) * (g * g);
        piece.first[i] = first, piece.second[i] = second;
        piece.value[i] = s.keep * piece.value[i] - s.size * first / (sqrt(second) / s.correction2 + s.epsilon);
    }
}

}  // namespace dphpc
