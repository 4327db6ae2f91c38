// Port of moddit/models/vae.py.

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
