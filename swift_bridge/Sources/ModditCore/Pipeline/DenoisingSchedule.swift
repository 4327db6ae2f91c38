/// How the rows of a step are given to the denoiser, which depends on the batches that a bundle has.
package enum Batching: Sendable, Hashable {
    /// The negative row and the other one in one call.
    case together
    /// The negative row and the other one in a call each.
    case apart
    /// One row in one call.
    case single
    /// One row twice in one call, where a bundle has only functions for two.
    case doubled

    /// Chooses: one call if it can be, of as many rows as there are.
    ///
    /// - Throws: `ModditError.missing` if the bundle has functions neither for one row nor for two.
    package init(rows: Int, batches: [Int]) throws(ModditError) {
        switch (rows == 2, batches.contains(2), batches.contains(1)) {
        case (true, true, _): self = .together
        case (true, false, true): self = .apart
        case (false, _, true): self = .single
        case (false, true, false): self = .doubled
        default:
            throw .missing("[pipeline] the bundle has functions for batches \(batches), want 1 or 2; convert again")
        }
    }

    /// Rows of a call.
    package var batch: Int {
        switch self {
        case .together, .doubled: 2
        case .apart, .single: 1
        }
    }

    /// For every call of a step, its rows.
    var calls: [[Int]] {
        switch self {
        case .together: [[0, 1]]
        case .apart: [[0], [1]]
        case .single: [[0]]
        case .doubled: [[0, 0]]
        }
    }
}

/// The steps of a run, each with the function that computes it.
package struct DenoisingSchedule: Sendable, Hashable {
    /// One step.
    package struct Step: Sendable, Hashable {
        /// From 0.
        package let index: Int
        /// The sampler's weights, and the timestep.
        package let sampler: SamplerStep
        /// Region of the timestep.
        package let region: Int
        /// The function of its region, which is not called where the step is reused.
        package let function: StepFunction
    }

    /// The picture's size.
    package let size: PictureSize
    /// The sampler.
    package let sampler: Sampler
    private let table: SamplerTable
    /// The steps, noisiest first.
    package let steps: [Step]

    /// Plans a run.
    ///
    /// - Parameters:
    ///   - manifest: of the bundle.
    ///   - size: by default the bundle's first.
    ///   - batch: rows of a call of the denoiser.
    ///   - sampler: by default the checkpoint's own.
    ///   - steps: their number.
    ///   - reuse: the denoiser is called in the first of so many steps.
    ///   - strength: share of the steps that are taken, the last ones.
    ///   - startsFromImage: whether a run of all steps starts from an image, too.
    /// - Throws: `ModditError.missing` if the bundle has no function for the size and batch, and what `SamplerTable`
    ///   throws.
    package init(
        _ manifest: Manifest, size: PictureSize? = nil, batch: Int, sampler: Sampler? = nil, steps: Int, reuse: Int = 1,
        strength: Double = 1, startsFromImage: Bool = false
    ) throws(ModditError) {
        guard let graphs = manifest.graphs, let size = size ?? graphs.sizes.first else {
            throw .unsupported("[pipeline] the bundle has no packages, want one for coreml; convert with --to coreml")
        }
        table = try SamplerTable(
            manifest.spec.scheduler, sampler: sampler, steps: steps, reuse: reuse, strength: strength,
            startsFromImage: startsFromImage)
        var found: [Step] = []
        for (index, step) in table.steps.enumerated() {
            let region = try manifest.tokens.plan.region(of: step.timestep)
            let function = try graphs.stepFunction(size: size, batch: batch, region: region)
            found.append(Step(index: index, sampler: step, region: region, function: function))
        }
        self.size = size
        self.sampler = table.sampler
        self.steps = found
    }

    /// Latents that the run starts from: of noise, and of an image's clean ones where it starts from an image.
    func start(noise: [Float], image: [Float]?) -> [Float] {
        table.start(noise: noise, image: image)
    }
}
