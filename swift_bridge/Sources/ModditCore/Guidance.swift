/// Classifier-free guidance: two outputs of the model, for the negative prompt and for the prompt, become one.
struct Guidance: Sendable, Hashable {
    /// How much to follow the prompt; 1 or less generates without guidance, in half the time.
    let scale: Float

    /// Makes a guidance of a scale.
    ///
    /// - Throws: `ModditError.valueRange` if the scale is not finite.
    init(scale: Float) throws(ModditError) {
        guard scale.isFinite else {
            throw .valueRange("[guidance] guidance scale is not a number, got \(scale), want a finite one, 1 for none")
        }
        self.scale = scale
    }

    /// Whether the negative prompt counts.
    var isGuided: Bool { scale > 1 }

    /// Rows of a batch of the model: the negative prompt and the prompt, or the prompt alone.
    var rows: Int { isGuided ? 2 : 1 }

    /// Combines the rows of the model's output, `negative + scale * (positive - negative)`, and drops the learned
    /// variance.
    ///
    /// Shapes: output (rows, C or 2 * C, h, w) -> (C, h, w), negative prompt first.
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
        return (0..<count).map { index in
            let negative = output[index]
            return negative + scale * (output[width + index] - negative)
        }
    }
}
