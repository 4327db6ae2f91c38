import Foundation

/// From a prompt, and perhaps an image, to a picture.
///
/// ```swift
/// let picture = try await pipeline.generate(Request(prompt: "a large red circle", seed: 1))
/// try picture.png().write(to: url)
/// ```
///
/// It has no state of its own: what is loaded belongs to its parts.
public struct Pipeline: Sendable {
    /// The bundle's.
    package let manifest: Manifest
    private let conditioning: any Conditioning
    private let preparation: any Preparing
    private let denoiser: any Denoiser
    private let encoder: any ImageEncoding
    private let decoder: any LatentDecoding
    private let modelPath: String?  // the bundle's folder as the user gave it, for the picture's file
    private let reducesMemory: Bool  // whether each part gives its memory back when the next one begins
    private let versions: [String: String]  // of programs that can change a picture, for its file

    /// Makes a pipeline of its parts.
    init(
        manifest: Manifest, conditioning: any Conditioning, preparation: any Preparing, denoiser: any Denoiser,
        encoder: any ImageEncoding, decoder: any LatentDecoding, modelPath: String? = nil, reducesMemory: Bool = false,
        versions: [String: String] = ["moddit": PictureMetadata.packageVersion]
    ) {
        self.manifest = manifest
        self.conditioning = conditioning
        self.preparation = preparation
        self.denoiser = denoiser
        self.encoder = encoder
        self.decoder = decoder
        self.modelPath = modelPath
        self.reducesMemory = reducesMemory
        self.versions = versions
    }

    /// Sizes of pictures that the bundle can draw. Where a request names none, the first is drawn, or the one nearest to
    /// the shape of an edit's image.
    public var sizes: [PictureSize] { manifest.graphs?.sizes ?? [] }

    /// Names of the classes that the model draws, each with commas between synonyms; empty if it draws texts, or if
    /// nobody has named its classes.
    public var labels: [String] { conditioning.labels?.names ?? [] }

    /// Finds a class by its number or by one of its names, in capitals or not.
    ///
    /// - Throws: `ModditError.valueRange` and `.missing` if there is none, with the nearest names; `.unsupported` if
    ///   the model draws texts.
    public func label(_ text: String) throws(ModditError) -> Int {
        guard let labels = conditioning.labels else {
            throw .unsupported("[request] label is \(text.quoted), but this model draws a text; want a prompt alone")
        }
        return try labels.number(of: text)
    }

    /// Generates a picture.
    ///
    /// - Parameters:
    ///   - request: what to draw, and how.
    ///   - edit: the image to start from, and what of it is drawn anew.
    ///   - previews: whether steps come with a small picture of what the model expects.
    ///   - report: called after every stage.
    /// - Returns: a picture of the size that is drawn. With a mask it is of the image's size, or of the one that the
    ///   request names, and every pixel outside the mask is the image's.
    /// - Throws: `ModditError` for a request that the bundle cannot use, before anything is computed, and for values
    ///   that are not finite; `CancellationError` at the next call of a model after the task was cancelled; whatever
    ///   the parts throw.
    public func generate(
        _ request: Request, from edit: Edit? = nil, previews: Bool = false,
        report: (@Sendable (Stage) async -> Void)? = nil
    ) async throws -> Picture {
        try conditioning.check(request)
        let scale = request.guidanceScale ?? conditioning.guidanceScale
        let run = try Run(manifest, request, edit, guidanceScale: scale)
        do {
            return try await generate(run, previews, report)
        } catch {
            if reducesMemory { await unload() }
            throw error
        }
    }

    private func generate(
        _ run: Run, _ previews: Bool, _ report: (@Sendable (Stage) async -> Void)?
    ) async throws -> Picture {
        let conditions = try await conditioning.encode(run.request, isGuided: run.guidance.isGuided)
        if reducesMemory { await conditioning.unload() }
        await report?(.encoded(tokens: conditions.tokens))
        let calls = try await prepare(run, conditions.rows)
        let start = try run.start(moments: try await encode(run.edit))
        let latents = try await denoise(run, from: start, calls, previews, report)
        try Task.checkCancellation()
        let size = run.schedule.size
        let planes = try await decoder.decode(latents, size: size)
        if reducesMemory { await decoder.unload() }
        let drawn = try PixelImage(planes: planes, height: size.height, width: size.width)
        let image = try run.edit?.finish(drawn) ?? drawn
        let picture = Picture(image: image, latents: latents, metadata: describe(run))
        await report?(.decoded(picture))
        return picture
    }

    /// Generates a picture as a sequence of stages, of which the last is the picture; who stops reading cancels it.
    public func stages(
        _ request: Request, from edit: Edit? = nil, previews: Bool = false
    ) -> AsyncThrowingStream<Stage, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    _ = try await generate(request, from: edit, previews: previews) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    /// Gives the memory of all parts back.
    public func unload() async {
        await conditioning.unload()
        await preparation.unload()
        await encoder.unload()
        await denoiser.unload()
        await decoder.unload()
    }

    /// Gives what each call of a step is told of its rows.
    private func prepare(_ run: Run, _ rows: [Condition]) async throws -> [[String: any FeatureValue]] {
        var calls: [[String: any FeatureValue]] = []
        for call in run.batching.calls {
            try Task.checkCancellation()
            calls.append(try await preparation.prepare(call.map { rows[$0] }))
        }
        if reducesMemory { await preparation.unload() }
        return calls
    }

    /// Gives the moments of an edit's image.
    private func encode(_ edit: ScaledEdit?) async throws -> [Float]? {
        guard let edit else { return nil }
        try Task.checkCancellation()
        let moments = try await encoder.encode(edit.start.planes, size: edit.size)
        if reducesMemory { await encoder.unload() }
        return moments
    }

    private func denoise(
        _ run: Run, from start: Start, _ calls: [[String: any FeatureValue]], _ previews: Bool,
        _ report: (@Sendable (Stage) async -> Void)?
    ) async throws -> [Float] {
        var latents = run.schedule.start(noise: start.noise, image: start.image)
        var denoised: [Float] = []
        for step in run.schedule.steps {
            let before = denoised
            if !step.sampler.isReused {
                denoised = try step.sampler.denoise(latents, output: try await predict(run, step, latents, calls))
            }
            latents = try step.sampler.advance(latents, denoised: denoised, previousDenoised: before)
            latents = start.putBack(latents, after: step.sampler)
            if let report {
                await report(.step(try run.result(of: step, denoised: previews ? denoised : nil)))
            }
        }
        if reducesMemory { await denoiser.unload() }
        return latents
    }

    /// Runs the denoiser as often as one step needs, and applies guidance.
    private func predict(
        _ run: Run, _ step: DenoisingSchedule.Step, _ latents: [Float], _ calls: [[String: any FeatureValue]]
    ) async throws -> [Float] {
        let input = step.sampler.scaleInput(latents)
        var outputs: [Float] = []
        let batch = Array(repeating: input, count: run.batching.batch).flatMap { $0 }
        for told in calls {
            try Task.checkCancellation()
            let output = try await denoiser.predict(
                DenoiserInput(
                    function: step.function, latents: batch, timestep: Float(step.sampler.timestep), told: told))
            outputs += run.batching == .doubled ? Array(output.suffix(output.count / 2)) : output
        }
        return try run.guidance.combine(outputs, keeping: latents.count)
    }

    private func describe(_ run: Run) -> PictureMetadata {
        PictureMetadata(
            request: run.request, edit: run.edit?.edit, guidanceScale: run.guidance.scale, size: run.schedule.size,
            sampler: run.schedule.sampler, path: modelPath, fingerprint: manifest.fingerprint,
            source: manifest.provenance.source, dtype: manifest.components["transformer"]?.dtype?.rawValue,
            versions: versions)
    }
}
