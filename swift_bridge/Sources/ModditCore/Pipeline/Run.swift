/// What one generation needs beside the models, checked before they run.
struct Run: Sendable {
    let request: Request
    let edit: ScaledEdit?
    let guidance: Guidance
    let batching: Batching
    let schedule: DenoisingSchedule
    let shape: [Int]  // of latents, (1, C, h, w)
    private let vae: VAESpec

    init(
        _ manifest: Manifest, _ request: Request, _ edit: Edit?, guidanceScale: Double
    ) throws(ModditError) {
        try request.check()
        self.request = request
        vae = manifest.spec.vae
        guidance = try Guidance(scale: guidanceScale)
        let graphs = manifest.graphs
        let scaled = try edit.map { edit throws(ModditError) in
            try ScaledEdit(
                edit, wanted: request.size, sizes: graphs?.sizes ?? [], unit: manifest.spec.pixelsPerPatch)
        }
        self.edit = scaled
        batching = try Batching(rows: guidance.rows, batches: graphs?.batches ?? [1])
        schedule = try DenoisingSchedule(
            manifest, size: scaled?.size ?? request.size, batch: batching.batch, sampler: request.sampler,
            steps: request.steps, reuse: request.reuse, strength: edit?.strength ?? 1,
            startsFromImage: edit != nil && edit?.mask == nil)
        let channels = manifest.spec.transformer.dimensions.channels
        shape = [1, channels, schedule.size.height / vae.downscale, schedule.size.width / vae.downscale]
    }

    /// Draws what the denoising starts from; of one generator, first the VAE's sample and then the noise.
    ///
    /// - Parameter moments: of the edit's image, as the VAE's encoder gives them.
    func start(moments: [Float]?) throws(ModditError) -> Start {
        var stream = try NoiseStream(seed: request.seed)
        let image = try moments.map { moments throws(ModditError) in
            try vae.sample(moments, noise: stream.normal(shape: shape))
        }
        return Start(
            noise: try stream.normal(shape: shape), image: image, mask: edit?.mask?.latent(scale: vae.downscale))
    }

    func result(of step: DenoisingSchedule.Step, denoised: [Float]?) throws(ModditError) -> StepResult {
        var preview: PixelImage?
        if let denoised {
            preview = try PixelImage(previewOf: denoised, channels: shape[1], height: shape[2], width: shape[3])
        }
        return StepResult(
            index: step.index, total: schedule.steps.count, timestep: step.sampler.timestep, region: step.region,
            function: step.sampler.isReused ? nil : step.function.function, preview: preview)
    }
}

/// What the denoising of a picture starts from.
struct Start: Sendable {
    /// Standard normal, (C, h, w).
    let noise: [Float]
    /// Clean latents of an edit's image, alike.
    let image: [Float]?
    /// Whether each pixel of the latent is drawn anew, (h, w).
    let mask: [Bool]?

    /// Puts the image's latents back where nothing is drawn anew, after a step.
    func putBack(_ latents: [Float], after step: SamplerStep) -> [Float] {
        guard let image, let mask else { return latents }
        return step.putBack(latents, image: image, noise: noise, mask: mask)
    }
}
