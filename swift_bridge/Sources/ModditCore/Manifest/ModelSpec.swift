// Port of moddit/spec.py: what a bundle says about its model. Sizes have upper bounds here, so that no product of them
// can overflow.

/// Largest width, number of layers or other dimension that a specification may have.
private let mostOfAny = 1 << 24
private let mostOfASide = 1 << 12
private let mostLayers = 1 << 12

/// Dimensions of a PixArt transformer.
public struct PixArtSpec: Sendable, Hashable {
    /// Blocks.
    public let layers: Int
    /// Width of a token.
    public let hiddenSize: Int
    /// Channels of a latent.
    public let channels: Int
    /// Side of a patch, latent pixels.
    public let patchSize: Int
    /// Side of the latents that the model was trained on, pixels of a latent.
    public let sampleSize: Int
    /// Width of the text encoder's states.
    public let captionChannels: Int
    /// Whether the model is told the picture's resolution and aspect ratio.
    public let usesAdditionalConditions: Bool

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field,
            [
                "num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "patch_size",
                "sample_size", "cross_attention_dim", "caption_channels", "interpolation_scale", "attention_bias",
                "norm_eps", "use_additional_conditions",
            ])
        layers = try object.count("num_layers", most: mostLayers)
        let heads = try object.count("num_attention_heads", most: mostOfAny)
        hiddenSize = try object.count("attention_head_dim", most: mostOfAny) * heads
        channels = try object.count("in_channels", most: mostOfASide)
        _ = try object.count("out_channels", most: mostOfASide)
        patchSize = try object.count("patch_size", most: mostOfASide)
        sampleSize = try object.count("sample_size", most: mostOfASide)
        captionChannels = try object.count("caption_channels", most: mostOfAny)
        usesAdditionalConditions = try object["use_additional_conditions"].bool()
        _ = try object["interpolation_scale"].number()
        _ = try object["attention_bias"].bool()
        _ = try object["norm_eps"].number()
        let width = try object.count("cross_attention_dim", most: Int.max)
        guard width == hiddenSize else {
            throw .unsupported("[spec] cross_attention_dim is not the hidden size, got \(width), want \(hiddenSize)")
        }
        guard sampleSize % patchSize == 0 else {
            throw .shape("[spec] sample_size \(sampleSize) is not a multiple of patch_size \(patchSize)")
        }
    }

    /// Counts the tokens of a latent.
    ///
    /// - Throws: `ModditError.shape` if a side is not a positive multiple of the patch size, or too large.
    public func tokens(height: Int, width: Int) throws(ModditError) -> Int {
        let isWhole = height % patchSize == 0 && width % patchSize == 0
        guard height >= 1, width >= 1, max(height, width) <= 1 << 15, isWhole else {
            throw .shape("[spec] latent size \(height)x\(width) is not made of whole patches of \(patchSize)")
        }
        return (height / patchSize) * (width / patchSize)
    }
}

/// Dimensions of a T5 encoder.
public struct T5Spec: Sendable, Hashable {
    /// Tokens that it knows.
    public let vocabularySize: Int
    /// Width of its states.
    public let width: Int
    /// Blocks.
    public let layers: Int

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field,
            [
                "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
                "relative_attention_max_distance", "is_gated", "dense_act_fn", "layer_norm_epsilon",
            ])
        vocabularySize = try object.count("vocab_size", most: mostOfAny)
        width = try object.count("d_model", most: mostOfAny)
        layers = try object.count("num_layers", most: mostLayers)
        for name in ["d_kv", "d_ff", "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance"] {
            _ = try object.count(name, most: mostOfAny)
        }
        _ = try object["is_gated"].bool()
        _ = try object["dense_act_fn"].string()
        _ = try object["layer_norm_epsilon"].number()
    }
}

/// Dimensions of an autoencoder.
public struct VAESpec: Sendable, Hashable {
    /// Channels of a latent.
    public let latentChannels: Int
    /// Picture pixels per latent pixel.
    public let downscale: Int
    /// Latents of the transformer = (encoded - `shiftFactor`) * `scalingFactor`.
    public let scalingFactor: Double
    /// See `scalingFactor`.
    public let shiftFactor: Double

    /// Reads the specification strictly.
    init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field,
            [
                "in_channels", "out_channels", "latent_channels", "block_out_channels", "layers_per_block",
                "norm_num_groups", "scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv",
                "mid_block_add_attention",
            ])
        latentChannels = try object.count("latent_channels", most: mostOfASide)
        let blocks = try object["block_out_channels"].integers(in: 1...mostOfAny)
        guard (1...8).contains(blocks.count) else {
            throw .shape("[spec] block_out_channels has \(blocks.count) numbers, want 1...8")
        }
        downscale = 1 << (blocks.count - 1)
        scalingFactor = try object["scaling_factor"].number()
        shiftFactor = try object["shift_factor"].number()
        guard scalingFactor > 0 else {
            throw .valueRange("[spec] scaling_factor out of range, got \(scalingFactor), want more than 0")
        }
        for name in ["in_channels", "out_channels"] {
            let channels = try object.count(name, most: mostOfASide)
            guard channels == 3 else {
                throw .unsupported("[spec] VAE \(name) = \(channels) is not implemented, want 3: red, green and blue")
            }
        }
        for name in ["layers_per_block", "norm_num_groups"] { _ = try object.count(name, most: mostOfAny) }
        for name in ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"] {
            _ = try object[name].bool()
        }
    }
}

/// A whole text-to-picture model.
public struct ModelSpec: Sendable, Hashable {
    /// The denoising transformer.
    public let transformer: PixArtSpec
    /// The text encoder.
    public let textEncoder: T5Spec
    /// The autoencoder.
    public let vae: VAESpec
    /// How the model was trained to denoise.
    public let scheduler: NoiseSchedule
    /// Text tokens, the end token included.
    public let maxSequenceLength: Int

    /// Reads the "spec" object of a manifest strictly.
    ///
    /// - Throws: `ModditError` for unknown or missing fields, or values that are not allowed or do not fit together.
    public init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field, ["transformer", "text_encoder", "vae", "scheduler", "max_sequence_length"])
        transformer = try PixArtSpec(object["transformer"])
        textEncoder = try T5Spec(object["text_encoder"])
        vae = try VAESpec(object["vae"])
        scheduler = try NoiseSchedule(object["scheduler"])
        maxSequenceLength = try object.count("max_sequence_length", most: UnigramTokenizer.longest)
        guard transformer.channels == vae.latentChannels else {
            throw .shape(
                "[spec] transformer in_channels \(transformer.channels) and VAE latent_channels "
                    + "\(vae.latentChannels) differ")
        }
        guard transformer.captionChannels == textEncoder.width else {
            throw .shape(
                "[spec] transformer caption_channels \(transformer.captionChannels) and text encoder d_model "
                    + "\(textEncoder.width) differ")
        }
    }

    /// Sides of a picture must be multiples of this.
    public var pixelsPerPatch: Int { transformer.patchSize * vae.downscale }

    /// Side of the square picture that the model was trained on, pixels.
    public var defaultSide: Int { transformer.sampleSize * vae.downscale }
}
