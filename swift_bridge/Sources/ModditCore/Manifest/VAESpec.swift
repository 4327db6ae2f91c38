// Port of moddit/models/vae.py.

import Foundation

/// Dimensions of an autoencoder.
struct VAESpec: Sendable, Hashable {
    /// Channels of a latent.
    let latentChannels: Int
    /// Picture pixels per latent pixel.
    let downscale: Int
    private let scalingFactor: Float
    private let shiftFactor: Float

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
        scalingFactor = Float(try object["scaling_factor"].number(in: scales))
        shiftFactor = Float(try object["shift_factor"].number(in: -1e6...1e6))
        for name in ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"] {
            _ = try object[name].bool()
        }
        guard widths.allSatisfy({ $0 % groups == 0 }) else {
            let wanted = "multiples of norm_num_groups, \(groups)"
            throw .shape(try object["block_out_channels"].message("is \(widths)", want: wanted))
        }
    }

    /// Draws latents in the transformer's scale from what the encoder gave.
    ///
    /// Shapes: moments (2 C, h, w), means before logarithms of variances, noise (C, h, w) -> as noise.
    ///
    /// Source: diffusers, `DiagonalGaussianDistribution`.
    ///
    /// - Throws: `ModditError.shape` if the sizes do not fit.
    func sample(_ moments: [Float], noise: [Float]) throws(ModditError) -> [Float] {
        guard moments.count == 2 * noise.count else {
            throw .shape("[vae] got \(moments.count) moments, want 2 for each of \(noise.count) latent values")
        }
        return noise.indices.map { index in
            let logarithm = min(max(moments[noise.count + index], -30), 20)
            return (moments[index] + exp(0.5 * logarithm) * noise[index] - shiftFactor) * scalingFactor
        }
    }
}
