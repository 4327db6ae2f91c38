/// One step of a sampling run: the timestep, and the weights of three formulas.
///
/// With x the latent, o the model's output and d the denoised latent:
///
///     input = inputScale * x
///     d     = denoisedX * x + denoisedOutput * o, or (d of the step before) where the step is reused
///     x'    = keepX * x + current * d + previous * (d of the step before)
package struct SamplerStep: Sendable, Hashable {
    /// Given to the model; a whole number except for Euler with `linspace`.
    package let timestep: Double
    /// Scales the latent before the model sees it.
    let inputScale: Double
    /// Weight of the latent in the denoised latent.
    let denoisedX: Double
    /// Weight of the model's output in the denoised latent.
    let denoisedOutput: Double
    /// Weight of the latent in the next latent.
    let keepX: Double
    /// Weight of the denoised latent in the next latent.
    let current: Double
    /// Weight of the step before's denoised latent in the next latent; 0 in the first step.
    let previous: Double
    /// Whether it has the denoised latent of the step before: the model is not asked.
    package internal(set) var isReused = false

    /// Gives the denoised latent of a step that is not reused, in single precision with the weights rounded to it, as
    /// the Python runtimes do.
    ///
    /// - Parameters:
    ///   - x: latent before the step, unscaled.
    ///   - output: the model's output for `inputScale * x` and `timestep`, guidance applied.
    /// - Returns: as many values.
    /// - Throws: `ModditError.shape` if the lengths differ.
    func denoise(_ x: [Float], output: [Float]) throws(ModditError) -> [Float] {
        guard output.count == x.count else {
            throw .shape("[samplers] the model's output has \(output.count) values, want \(x.count) as the latent")
        }
        return Self.weigh(x, Float(denoisedX), output, Float(denoisedOutput))
    }

    /// Takes the step.
    ///
    /// - Parameters:
    ///   - x: latent before the step, unscaled.
    ///   - denoised: the denoised latent.
    ///   - previousDenoised: that of the step before; empty in the first step.
    /// - Returns: the latent after the step.
    /// - Throws: `ModditError.shape` if the lengths differ.
    func advance(_ x: [Float], denoised: [Float], previousDenoised: [Float]) throws(ModditError) -> [Float] {
        guard denoised.count == x.count, previous == 0 || previousDenoised.count == x.count else {
            throw .shape(
                "[samplers] the step at \(timestep) has \(denoised.count) denoised values and \(previousDenoised.count) "
                    + "of the step before, want \(x.count) of each that it needs")
        }
        var latents = Self.weigh(x, Float(keepX), denoised, Float(current))
        if previous != 0 {
            let weight = Float(previous)
            for index in latents.indices { latents[index] += weight * previousDenoised[index] }
        }
        return latents
    }

    /// Scales a latent for the model.
    func scaleInput(_ x: [Float]) -> [Float] {
        let scale = Float(inputScale)
        return x.map { scale * $0 }
    }

    private static func weigh(_ a: [Float], _ weightA: Float, _ b: [Float], _ weightB: Float) -> [Float] {
        zip(a, b).map { weightA * $0 + weightB * $1 }
    }
}

/// A sampling run: start from `initScale * noise` and take the steps in order.
struct SamplerTable: Sendable, Hashable {
    /// The sampler.
    let sampler: Sampler
    /// Scales the noise that a run starts from.
    let initScale: Double
    /// The steps, noisiest first.
    let steps: [SamplerStep]

    /// Computes the table of a sampling run.
    ///
    /// It visits the timesteps that diffusers' scheduler of that sampler visits with the schedule's spacing.
    ///
    /// - Parameters:
    ///   - schedule: of the checkpoint.
    ///   - sampler: by default the checkpoint's own.
    ///   - steps: 1 to `numTrainTimesteps`.
    ///   - reuse: the model is asked in the first of so many steps; the others have its denoised latent.
    /// - Throws: `ModditError.valueRange` for so many steps that a timestep repeats or leaves the training range, and
    ///   for a reuse that is out of range or would leave a single step.
    init(
        _ schedule: NoiseSchedule, sampler: Sampler? = nil, steps: Int, reuse: Int = 1
    ) throws(ModditError) {
        guard (1...Bounds.timesteps).contains(reuse) else {
            throw .valueRange("[request] reuse out of range, got \(reuse), want 1..\(Bounds.timesteps)")
        }
        guard reuse == 1 || reuse < steps else {
            throw .valueRange(
                "[request] reuse \(reuse) of \(steps) steps leaves a single one, want fewer than the steps")
        }
        let sampler = sampler ?? schedule.sampler
        let total = schedule.numTrainTimesteps
        guard (1...total).contains(steps) else {
            throw .valueRange("[samplers] steps out of range, got \(steps), want 1...\(total)")
        }
        let timesteps = schedule.timesteps(sampler, steps: steps)
        let isDecreasing = zip(timesteps, timesteps.dropFirst()).allSatisfy { $0 > $1 }
        guard timesteps.count == steps, isDecreasing, let first = timesteps.first, let last = timesteps.last,
            first < Double(total), last >= 0
        else {
            throw .valueRange(
                "[samplers] \(steps) steps of '\(sampler.rawValue)' do not fit into \(total) timesteps with spacing "
                    + "'\(schedule.timestepSpacing.rawValue)' and offset \(schedule.stepsOffset), "
                    + "want another number of steps")
        }
        var rows: [SamplerStep]
        switch sampler {
        case .dpmpp2M: (initScale, rows) = (1, schedule.dpmSteps(timesteps))
        case .ddim: (initScale, rows) = (1, schedule.ddimSteps(timesteps))
        case .euler: (initScale, rows) = schedule.eulerSteps(timesteps)
        }
        for index in rows.indices { rows[index].isReused = !index.isMultiple(of: reuse) }
        self.sampler = sampler
        self.steps = rows
    }
}
