// Thermostats that turn the kinetic energy into a factor for all velocities, by one thread, as `respond` does in
// dphpc/md/thermostats.py, where the formulas are.  `kinetic` (3) is in the parts of exact_sum.h.

namespace dphpc {

__device__ inline double total(const double* parts) { return parts[0] + (parts[1] + parts[2]); }

constexpr double w_outer = 1.3512071919596578, w_inner = 1.0 - 2.0 * w_outer;  // Suzuki–Yoshida, of fourth order

// The variables of a Nosé–Hoover chain.
struct Chain {
    double *head, *positions, *velocities;  // head: temperature (K), work, kinetic energy (eV)
    int length;
    double dof, damping;

    __device__ double kT() const { return BOLTZMANN * head[0]; }
    __device__ double mass(int k) const { return kT() * (damping * damping) * (k == 0 ? dof : 1.0); }

    __device__ double energy() const {
        double kinetic = 0.0, sum = 0.0;
        for (int k = 0; k < length; ++k) kinetic += mass(k) * (velocities[k] * velocities[k]);
        for (int k = 1; k < length; ++k) sum += positions[k];
        return 0.5 * kinetic + kT() * (dof * positions[0] + sum);
    }

    __device__ void push(int k, double h, double kinetic, double factor) {
        double* v = velocities;
        const double excess =
            k == 0 ? 2.0 * kinetic * (factor * factor) - dof * kT() : mass(k - 1) * (v[k - 1] * v[k - 1]) - kT();
        const double drag = k + 1 < length ? exp(-0.25 * h * v[k + 1]) : 1.0;
        v[k] = (v[k] * drag + 0.5 * h * excess / mass(k)) * drag;
    }

    __device__ double half_step(double kinetic, double dt) {
        double factor = 1.0;
        for (int part = 0; part < 3; ++part) {
            const double h = 0.5 * dt * (part == 1 ? w_inner : w_outer);
            for (int k = length - 1; k >= 0; --k) push(k, h, kinetic, factor);
            factor *= exp(-h * velocities[0]);
            for (int k = 0; k < length; ++k) positions[k] += h * velocities[k];
            for (int k = 0; k < length; ++k) push(k, h, kinetic, factor);
        }
        return factor;
    }
};

struct NoseHoover {
    double temperature, dt, half, dof, damping, length;
};

extern "C" __global__ void nose_hoover(const double* kinetic, double* scalars, const NoseHoover now, double* factor) {
    const int length = static_cast<int>(now.length);
    Chain chain{scalars, scalars + 3, scalars + 3 + length, length, now.dof, now.damping};
    if (now.temperature != scalars[0]) {
        const double before = chain.energy();
        scalars[0] = now.temperature;
        scalars[1] += chain.energy() - before;
    }
    const bool known = scalars[2] == scalars[2];
    const double given = now.half == 0.0 && known ? scalars[2] : total(kinetic);
    *factor = chain.half_step(given, now.dt);
    scalars[2] = given * (*factor * *factor);
}

struct Bussi {
    double target, first, others, decay, dof;
};

extern "C" __global__ void bussi(const double* kinetic, double* scalars, const Bussi now, double* factor) {
    const double before = total(kinetic);
    *factor = 1.0;
    if (!(before > 0.0)) return;
    const double c = now.decay, d = (1.0 - c) * (now.target / before) / now.dof;
    const double factor2 = c + d * (now.first * now.first + now.others) + 2.0 * now.first * sqrt(c * d);
    scalars[0] += before * (1.0 - factor2);
    *factor = sqrt(factor2);
}

}  // namespace dphpc
