import Foundation

// Port of moddit/samplers.py, where the formulas' sources are named. a = alphas cumprod, s = sqrt((1 - a) / a), the
// noise level relative to the signal.

extension NoiseSchedule {
    /// Timesteps of a run, noisiest first, not yet checked.
    func timesteps(_ sampler: Sampler, steps: Int) -> [Double] {
        let last = Double(numTrainTimesteps - 1)
        switch (timestepSpacing, sampler) {
        case (.trailing, _):
            return trailingTimesteps(steps)
        case (.linspace, .dpmpp2M):  // one more, the last dropped
            return linspace(0, last, steps + 1).dropFirst().reversed().map { $0.rounded(.toNearestOrEven) }
        case (.linspace, .ddim):
            return linspace(0, last, steps).reversed().map { $0.rounded(.toNearestOrEven) }
        case (.linspace, .euler):  // not rounded to whole numbers, but to single precision
            return linspace(0, last, steps).reversed().map { Double(Float($0)) }
        case (.leading, .dpmpp2M):
            let stride = numTrainTimesteps / (steps + 1)
            return (1...steps).reversed().map { Double($0 * stride + stepsOffset) }
        case (.leading, _):
            let stride = numTrainTimesteps / steps
            return (0..<steps).reversed().map { Double($0 * stride + stepsOffset) }
        }
    }

    private func trailingTimesteps(_ steps: Int) -> [Double] {
        let total = Double(numTrainTimesteps)
        let stride = total / Double(steps)
        let count = Int((total / stride).rounded(.up))
        let delta = total - (total - stride)  // numpy.arange takes the difference of its first two values
        return (0..<count).map { (total - Double($0) * delta).rounded(.toNearestOrEven) - 1 }
    }

    /// How a run starts from noise, and its steps, for whoever takes all of them.
    func steps(_ sampler: Sampler, _ timesteps: [Double]) -> (initScale: Double, steps: [SamplerStep]) {
        switch sampler {
        case .dpmpp2M: (1, dpmSteps(timesteps))
        case .ddim: (1, ddimSteps(timesteps))
        case .euler: eulerSteps(timesteps)
        }
    }

    /// Weights of an image and of noise in x at each timestep, and behind the last, as the `add_noise` of diffusers.
    func mixes(_ sampler: Sampler, _ timesteps: [Double]) -> [(clean: Double, noise: Double)] {
        levels(at: timesteps).map { level in
            sampler == .euler ? (1, level) : (1 / hypot(1, level), level / hypot(1, level))
        }
    }

    /// DPM-Solver++ 2M, midpoint; the first step and the last, which goes to noise level 0, are of first order.
    private func dpmSteps(_ timesteps: [Double]) -> [SamplerStep] {
        let levels = levels(at: timesteps)
        return timesteps.indices.map { index in
            let (here, there) = (levels[index], levels[index + 1])
            let (alphaHere, alphaThere) = (1 / hypot(1, here), 1 / hypot(1, there))
            let ratio = there / here
            let weight = alphaThere * (1 - ratio)
            var correction = 0.0
            if index > 0, index < timesteps.count - 1 {
                correction = 0.5 * weight * log(here / there) / log(levels[index - 1] / here)  // 1 / r0 = h / h0
            }
            let (denoisedX, denoisedOutput) = denoise(level: here)
            return SamplerStep(
                timestep: timesteps[index], inputScale: 1, denoisedX: denoisedX, denoisedOutput: denoisedOutput,
                keepX: ratio * alphaThere / alphaHere, current: weight + correction, previous: -correction)
        }
    }

    /// DDIM with eta 0: x' = sqrt(a') * d + sqrt(1 - a') * eps, where eps = (x - sqrt(a) * d) / sqrt(1 - a).
    ///
    /// a' belongs to the timestep numTrainTimesteps / steps lower, which with `linspace` and `trailing` need not be the
    /// one visited next.
    private func ddimSteps(_ timesteps: [Double]) -> [SamplerStep] {
        let alphas = alphasCumprod
        let final = setAlphaToOne ? 1 : alphas[0]
        let stride = numTrainTimesteps / timesteps.count
        return timesteps.map { timestep in
            let index = Int(timestep)
            let here = alphas[index]
            let there = index >= stride ? alphas[index - stride] : final
            let keep = ((1 - there) / (1 - here)).squareRoot()
            let (denoisedX, denoisedOutput) = denoise(level: (1 / here - 1).squareRoot())
            return SamplerStep(
                timestep: timestep, inputScale: 1, denoisedX: denoisedX, denoisedOutput: denoisedOutput,
                keepX: keep, current: there.squareRoot() - keep * here.squareRoot(), previous: 0)
        }
    }

    /// Euler's method for x = picture + s * noise: x' = x + (s' - s) * (x - d) / s.
    private func eulerSteps(_ timesteps: [Double]) -> (initScale: Double, steps: [SamplerStep]) {
        let levels = levels(at: timesteps)
        let steps = timesteps.indices.map { index in
            let ratio = levels[index + 1] / levels[index]
            let inputScale = 1 / hypot(1, levels[index])
            let (denoisedX, denoisedOutput) = denoise(level: levels[index])
            return SamplerStep(
                timestep: timesteps[index], inputScale: inputScale, denoisedX: denoisedX * inputScale,
                denoisedOutput: denoisedOutput, keepX: ratio, current: 1 - ratio, previous: 0)
        }
        return (timestepSpacing == .leading ? hypot(1, levels[0]) : levels[0], steps)
    }

    /// Noise levels at timesteps in 0..<numTrainTimesteps, linear between whole ones, and the 0 that they lead to.
    private func levels(at timesteps: [Double]) -> [Double] {
        let levels = noiseLevels
        return timesteps.map { timestep in
            let index = Int(timestep)
            let (low, high) = (levels[index], levels[min(index + 1, levels.count - 1)])
            return (high - low) * (timestep - Double(index)) + low
        } + [0]
    }

    /// Weights of x and output in the denoised latent, for x = sqrt(a) * picture + sqrt(1 - a) * noise.
    ///
    /// epsilon: d = x / sqrt(a) - s * o;  velocity: d = sqrt(a) * x - sqrt(1 - a) * o
    private func denoise(level: Double) -> (x: Double, output: Double) {
        let alpha = 1 / hypot(1, level)
        return predictionType == .epsilon ? (1 / alpha, -level) : (alpha, -level * alpha)
    }
}
