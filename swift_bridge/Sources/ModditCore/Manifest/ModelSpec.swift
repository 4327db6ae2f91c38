// Port of moddit/spec.py: what a bundle says about its model. Its numbers have upper bounds, so that no product of them
// overflows.

/// Dimensions of a PixArt transformer.
package struct PixArtSpec: Sendable, Hashable {
    /// Blocks.
    package let layers: Int
    /// Width of a token.
    let hiddenSize: Int
    /// Channels of a latent.
    let channels: Int
    /// Side of a patch, latent pixels.
    let patchSize: Int
    /// Side of the latents that the model was trained on, pixels of a latent.
    let sampleSize: Int
    /// Width of the text encoder's states.
    let captionChannels: Int
    /// Whether the model is told the picture's resolution and aspect ratio.
    let usesAdditionalConditions: Bool

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field,
            [
                "num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size",
                "sample_size", "cross_attention_dim", "caption_channels", "interpolation_scale", "attention_bias",
                "norm_eps", "use_additional_conditions",
            ])
        layers = try object.count("num_layers", most: Bounds.layers)
        let heads = try object.count("num_attention_heads", most: Bounds.heads)
        hiddenSize = try object.count("attention_head_dim", most: Bounds.headWidth) * heads
        channels = try object.count("in_channels", most: Bounds.channels)
        let outputs = try object.count("out_channels", most: Bounds.channels)
        patchSize = try object.count("patch_size", most: Bounds.patch)
        sampleSize = try object.count("sample_size", most: Bounds.side)
        let width = try object.count("cross_attention_dim", most: Bounds.width)
        captionChannels = try object.count("caption_channels", most: Bounds.width)
        _ = try object["interpolation_scale"].number(in: scales)
        _ = try object["attention_bias"].bool()
        _ = try object["norm_eps"].number(in: 0...1)
        usesAdditionalConditions = try object["use_additional_conditions"].bool()
        guard width == hiddenSize else {
            let wanted = "the hidden size, \(hiddenSize)"
            throw .unsupported(try object["cross_attention_dim"].message("is \(width)", want: wanted))
        }
        guard sampleSize % patchSize == 0 else {
            let wanted = "a multiple of patch_size, \(patchSize)"
            throw .shape(try object["sample_size"].message("is \(sampleSize)", want: wanted))
        }
        guard hiddenSize % 4 == 0 else {
            let wanted = "a multiple of 4, as positions need"
            throw .shape(try object["cross_attention_dim"].message("is \(hiddenSize)", want: wanted))
        }
        guard [channels, 2 * channels].contains(outputs) else {
            let wanted = "in_channels, \(channels), or twice that with a variance"
            throw .unsupported(try object["out_channels"].message("is \(outputs)", want: wanted))
        }
    }

    /// Counts the tokens of a latent.
    ///
    /// - Throws: `ModditError.shape` if a side is not a positive multiple of the patch size, or too large.
    func tokens(height: Int, width: Int) throws(ModditError) -> Int {
        let sides = 1...Bounds.side
        let isWhole = height % patchSize == 0 && width % patchSize == 0
        guard sides.contains(height), sides.contains(width), isWhole else {
            throw .shape("[spec] latent size \(height)x\(width) is not made of whole patches of \(patchSize)")
        }
        return (height / patchSize) * (width / patchSize)
    }
}

/// Dimensions of a T5 encoder.
struct T5Spec: Sendable, Hashable {
    /// Activations of the feed-forward layers.
    private enum Activation: String, CaseIterable {
        case gelu, relu, silu
        case geluNew = "gelu_new"
    }

    /// Tokens that it knows.
    let vocabularySize: Int
    /// Width of its states.
    let width: Int

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field,
            [
                "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
                "relative_attention_max_distance", "is_gated", "dense_act_fn", "layer_norm_epsilon",
            ])
        vocabularySize = try object.count("vocab_size", most: Bounds.vocabulary)
        width = try object.count("d_model", most: Bounds.width)
        _ = try object.count("d_kv", most: Bounds.headWidth)
        _ = try object.count("d_ff", most: Bounds.width)
        _ = try object.count("num_layers", most: Bounds.layers)
        _ = try object.count("num_heads", most: Bounds.heads)
        let buckets = try object["relative_attention_num_buckets"].integer(in: 4...Bounds.buckets)
        let distance = try object.count("relative_attention_max_distance", most: Bounds.distance)
        _ = try object["is_gated"].bool()
        let _: Activation = try choice(object["dense_act_fn"])
        _ = try object["layer_norm_epsilon"].number(in: 0...1)
        guard distance > buckets / 4 else {  // distances up to there have buckets of their own
            let wanted = "more than \(buckets / 4), a quarter of relative_attention_num_buckets"
            throw try object["relative_attention_max_distance"].outOfRange(wanted)
        }
    }
}

/// Dimensions of an autoencoder.
struct VAESpec: Sendable, Hashable {
    /// Channels of a latent.
    let latentChannels: Int
    /// Picture pixels per latent pixel.
    let downscale: Int

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field,
            [
                "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block",
                "norm_num_groups", "scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv",
                "mid_block_add_attention",
            ])
        for name in ["in_channels", "out_channels"] {
            let channels = try object.count(name, most: Bounds.channels)
            guard channels == 3 else {
                throw .unsupported(try object[name].message("is \(channels)", want: "3: red, green and blue"))
            }
        }
        latentChannels = try object.count("latent_channels", most: Bounds.channels)
        let widths = try object["block_out_channels"].list(1...Bounds.levels) { item throws(ModditError) in
            try item.integer(in: 1...Bounds.width)
        }
        downscale = 1 << (widths.count - 1)
        _ = try object.count("layers_per_block", most: Bounds.layers)
        let groups = try object.count("norm_num_groups", most: Bounds.width)
        _ = try object["scaling_factor"].number(in: scales)
        _ = try object["shift_factor"].number(in: -1e6...1e6)
        for name in ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"] {
            _ = try object[name].bool()
        }
        guard widths.allSatisfy({ $0 % groups == 0 }) else {
            let wanted = "multiples of norm_num_groups, \(groups)"
            throw .shape(try object["block_out_channels"].message("is \(widths)", want: wanted))
        }
    }
}

/// A whole text-to-picture model.
package struct ModelSpec: Sendable, Hashable {
    /// The denoising transformer.
    package let transformer: PixArtSpec
    /// The text encoder.
    let textEncoder: T5Spec
    /// The autoencoder.
    let vae: VAESpec
    /// How the model was trained to denoise.
    package let scheduler: NoiseSchedule
    /// Text tokens, the end token included.
    package let maxSequenceLength: Int

    /// Reads the "spec" object of a manifest strictly.
    ///
    /// - Throws: `ModditError` for unknown or missing fields, or values that are not allowed or do not fit together.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field, ["transformer", "text_encoder", "vae", "scheduler", "max_sequence_length"])
        transformer = try PixArtSpec(object["transformer"])
        textEncoder = try T5Spec(object["text_encoder"])
        vae = try VAESpec(object["vae"])
        scheduler = try NoiseSchedule(object["scheduler"])
        maxSequenceLength = try object.count("max_sequence_length", most: Bounds.textTokens)
        guard transformer.channels == vae.latentChannels else {
            let found = "has in_channels \(transformer.channels)"
            let wanted = "the VAE's latent_channels, \(vae.latentChannels)"
            throw .shape(try object["transformer"].message(found, want: wanted))
        }
        guard transformer.captionChannels == textEncoder.width else {
            let found = "has caption_channels \(transformer.captionChannels)"
            let wanted = "the text encoder's d_model, \(textEncoder.width)"
            throw .shape(try object["transformer"].message(found, want: wanted))
        }
        guard defaultSide <= Bounds.side else {
            let found = "has sample_size \(transformer.sampleSize), which is \(defaultSide) pixels"
            throw .valueRange(try object["transformer"].message(found, want: "at most \(Bounds.side)"))
        }
    }

    /// Sides of a picture must be multiples of this.
    var pixelsPerPatch: Int { transformer.patchSize * vae.downscale }

    /// Side of the square picture that the model was trained on, pixels.
    var defaultSide: Int { transformer.sampleSize * vae.downscale }
}

/// Of the position embedding, and of latents.
private let scales = 1e-6...1e6
