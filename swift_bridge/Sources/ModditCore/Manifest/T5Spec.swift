// Port of moddit/models/t5.py.

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
