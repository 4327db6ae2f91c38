/// Classifier-free guidance: two outputs of the model become one.
struct Guidance: Sendable, Hashable {
    /// How much to follow the prompt or label; 1 or less generates without guidance, in half the time.
    let scale: Double

    /// Makes a guidance of a scale.
    ///
    /// - Throws: `ModditError.valueRange` for a scale that is out of bounds.
    init(scale: Double) throws(ModditError) {
        guard (0...Double(Bounds.guidance)).contains(scale) else {
            throw .valueRange("[request] guidance_scale out of range, got \(scale), want 0...\(Bounds.guidance)")
        }
        self.scale = scale
    }

    /// Whether the negative row counts.
    var isGuided: Bool { scale > 1 }

    /// Rows of a batch of the model: what to avoid and what to draw, or the latter alone.
    var rows: Int { isGuided ? 2 : 1 }

    /// Combines the rows of the model's output, `negative + scale * (positive - negative)`, and drops the learned
    /// variance.
    ///
    /// Shapes: output (rows, C or 2 * C, h, w) -> (C, h, w), what to avoid first.
    ///
    /// - Parameters:
    ///   - output: the model's output.
    ///   - count: values to keep of each row, C * h * w.
    /// - Throws: `ModditError.shape` if the output does not have `count` or `2 * count` values a row.
    func combine(_ output: [Float], keeping count: Int) throws(ModditError) -> [Float] {
        let (width, rest) = output.count.quotientAndRemainder(dividingBy: rows)
        guard count > 0, rest == 0, width == count || width % 2 == 0 && width / 2 == count else {
            throw .shape(
                "[guidance] the model's output has \(output.count) values, want \(rows) rows of \(count) or twice that")
        }
        guard isGuided else { return Array(output[0..<count]) }
        let scale = Float(scale)
        return (0..<count).map { index in
            let negative = output[index]
            return negative + scale * (output[width + index] - negative)
        }
    }
}
