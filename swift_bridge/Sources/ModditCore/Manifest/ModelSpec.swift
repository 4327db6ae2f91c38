// Port of moddit/spec.py: what a bundle says about its model. Its numbers have upper bounds, so that no product of them
// overflows.

/// A whole model, from what a picture is drawn from to its pixels.
package struct ModelSpec: Sendable {
    /// The denoising transformer.
    let transformer: any TransformerSpec
    /// What its pictures are drawn from.
    let conditioning: any ConditioningSpec
    /// The autoencoder.
    let vae: VAESpec
    /// How the model was trained to denoise.
    package let scheduler: NoiseSchedule

    /// Reads the "spec" object of a manifest strictly.
    ///
    /// - Throws: `ModditError` for unknown or missing fields, or values that are not allowed or do not fit together.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(field, ["transformer", "conditioning", "vae", "scheduler"])
        transformer = try readTransformer(object["transformer"])
        conditioning = try readConditioning(object["conditioning"])
        vae = try VAESpec(object["vae"])
        scheduler = try NoiseSchedule(object["scheduler"])
        let (channels, side) = (transformer.dimensions.channels, transformer.dimensions.sampleSize)
        guard channels == vae.latentChannels else {
            let wanted = "the VAE's latent_channels, \(vae.latentChannels)"
            throw .shape(try object["transformer"].message("has in_channels \(channels)", want: wanted))
        }
        try transformer.check(conditioning, try object["transformer"])
        guard defaultSide <= Bounds.side else {
            let found = "has sample_size \(side), which is \(defaultSide) pixels"
            throw .valueRange(try object["transformer"].message(found, want: "at most \(Bounds.side)"))
        }
    }

    /// Names of the components of a bundle.
    package var components: [String] { ["transformer", "vae"] + type(of: conditioning).components }

    /// What the packages of a bundle do.
    var roles: [PackageRole] {
        let isPrepared = !transformer.features.prepared.isEmpty
        return type(of: conditioning).roles + (isPrepared ? [.prepare] : []) + [.transformer, .vaeDecoder, .vaeEncoder]
    }

    /// Name of the transformer's architecture.
    package var architecture: String { type(of: transformer).architecture }

    /// Kind of what its pictures are drawn from.
    package var conditioningKind: String { type(of: conditioning).kind }

    /// Blocks of the transformer.
    package var layers: Int { transformer.dimensions.layers }

    /// Tokens of a text, the end token included; 0 if the model draws none.
    package var textTokens: Int { conditioning.textTokens }

    /// Sides of a picture must be multiples of this.
    var pixelsPerPatch: Int { transformer.dimensions.patchSize * vae.downscale }

    /// Side of the square picture that the model was trained on, pixels.
    var defaultSide: Int { transformer.dimensions.sampleSize * vae.downscale }
}

/// Of the position embedding, and of latents.
let scales = 1e-6...1e6
