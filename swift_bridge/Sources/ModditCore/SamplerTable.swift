import Foundation

/// One step of a sampling run: the timestep, and the weights of three formulas.
///
/// With x the latent, o the model's output and d the denoised latent:
///
///     input = inputScale * x
///     d     = denoisedX * x + denoisedOutput * o, or (d of the step before) where the step is reused
///     x'    = keepX * x + current * d + previous * (d of the step before)
///
/// Where a mask says what is drawn anew, the rest of x' is knownClean * image + knownNoise * noise.
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
    fileprivate(set) var current: Double
    /// Weight of the step before's denoised latent in the next latent; 0 in the first step.
    fileprivate(set) var previous: Double
    /// Weight of clean latents in those of the level that the step leads to.
    fileprivate(set) var knownClean = 0.0
    /// Weight of noise in them.
    fileprivate(set) var knownNoise = 0.0
    /// Whether it has the denoised latent of the step before: the model is not asked.
    package fileprivate(set) var isReused = false

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

    /// Gives the latent after the step with an image's where nothing is drawn anew, at the level that the step leads to.
    ///
    /// Shapes: all (C, h, w), but the mask (h, w).
    ///
    /// - Parameters:
    ///   - x: latent after the step.
    ///   - image: the image's clean latents.
    ///   - noise: that the run starts from.
    ///   - mask: whether each pixel of the latent is drawn anew.
    func putBack(_ x: [Float], image: [Float], noise: [Float], mask: [Bool]) -> [Float] {
        let known = Self.weigh(image, Float(knownClean), noise, Float(knownNoise))
        return x.indices.map { mask[$0 % mask.count] ? x[$0] : known[$0] }
    }

    /// Scales a latent for the model.
    func scaleInput(_ x: [Float]) -> [Float] {
        let scale = Float(inputScale)
        return x.map { scale * $0 }
    }

    fileprivate static func weigh(_ a: [Float], _ weightA: Float, _ b: [Float], _ weightB: Float) -> [Float] {
        zip(a, b).map { weightA * $0 + weightB * $1 }
    }
}

/// A sampling run: start from `initScale * noise + initClean * image` and take the steps in order.
struct SamplerTable: Sendable, Hashable {
    /// The sampler.
    let sampler: Sampler
    /// Scales the noise that a run starts from.
    let initScale: Double
    /// Scales the clean latents of an image that it starts from; 0 if there is nothing but noise.
    let initClean: Double
    /// The steps, noisiest first.
    let steps: [SamplerStep]

    /// Computes the table of a sampling run.
    ///
    /// It visits the timesteps that diffusers' scheduler of that sampler visits with the schedule's spacing. A run that
    /// leaves some out starts from an image with the noise of its first timestep, as does one of all if asked to.
    ///
    /// - Parameters:
    ///   - schedule: of the checkpoint.
    ///   - sampler: by default the checkpoint's own.
    ///   - steps: 1 to `numTrainTimesteps`.
    ///   - reuse: the model is asked in the first of so many steps; the others have its denoised latent.
    ///   - strength: share of the steps that are taken, the last ones, 0 to 1.
    ///   - startsFromImage: whether a run of all steps starts from an image, too.
    /// - Throws: `ModditError.valueRange` for so many steps that a timestep repeats or leaves the training range, for a
    ///   strength that leaves none, and for a reuse that is out of range or would leave a single step.
    init(
        _ schedule: NoiseSchedule, sampler: Sampler? = nil, steps: Int, reuse: Int = 1, strength: Double = 1,
        startsFromImage: Bool = false
    ) throws(ModditError) {
        let sampler = sampler ?? schedule.sampler
        let timesteps = try Self.timesteps(schedule, sampler, steps: steps)
        let count = try Self.countSteps(steps, strength: strength)
        try Self.check(reuse: reuse, of: count)
        var (scale, rows) = schedule.steps(sampler, timesteps)
        let mixes = schedule.mixes(sampler, timesteps)
        for index in rows.indices { (rows[index].knownClean, rows[index].knownNoise) = mixes[index + 1] }
        rows.removeFirst(steps - count)
        for index in rows.indices { rows[index].isReused = !index.isMultiple(of: reuse) }
        var clean = 0.0
        if count < steps || startsFromImage {
            (clean, scale) = mixes[steps - count]
            // without a step before it, as in diffusers
            (rows[0].current, rows[0].previous) = (rows[0].current + rows[0].previous, 0)
        }
        (self.sampler, initScale, initClean, self.steps) = (sampler, scale, clean, rows)
    }

    /// Latents that the run starts from: of noise, and of an image's clean ones where it starts from an image.
    func start(noise: [Float], image: [Float]?) -> [Float] {
        guard let image, initClean != 0 else { return noise.map { Float(initScale) * $0 } }
        return SamplerStep.weigh(noise, Float(initScale), image, Float(initClean))
    }

    private static func timesteps(
        _ schedule: NoiseSchedule, _ sampler: Sampler, steps: Int
    ) throws(ModditError) -> [Double] {
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
        return timesteps
    }

    /// Counts the steps that a run of some strength takes.
    private static func countSteps(_ steps: Int, strength: Double) throws(ModditError) -> Int {
        guard (0...1).contains(strength) else {
            throw .valueRange("[request] strength out of range, got \(strength), want 0..1")
        }
        let count = Int(Double(steps) * strength)
        guard count > 0 else {
            throw .valueRange(
                "[samplers] strength \(strength) of \(steps) steps leaves none to take, want at least "
                    + "\(String(format: "%g", (1000 / Double(steps)).rounded(.up) / 1000)), or more steps")
        }
        return count
    }

    private static func check(reuse: Int, of count: Int) throws(ModditError) {
        guard (1...Bounds.timesteps).contains(reuse) else {
            throw .valueRange("[request] reuse out of range, got \(reuse), want 1..\(Bounds.timesteps)")
        }
        guard reuse == 1 || reuse < count else {
            throw .valueRange(
                "[request] reuse \(reuse) of \(count) steps leaves a single one, want fewer than the steps")
        }
    }
}
