// Port of moddit/cost.py: what a step computes, counted, not timed. Two FLOPs for each multiply-accumulate.

extension PixArtSpec {
    func blockFLOPs(kept: Double, textTokens: Double) -> Double {
        let width = Double(dimensions.hiddenSize)
        return kept * (28 * width * width + 4 * kept * width + 4 * textTokens * width)
    }
}

extension DiTSpec {
    func blockFLOPs(kept: Double, textTokens: Double) -> Double {
        let width = Double(dimensions.hiddenSize)
        return kept * (24 * width * width + 4 * kept * width)
    }
}

extension ModelSpec {
    /// Counts the FLOPs of one step for a batch of one: blocks, routers, patch embedding and final projection.
    ///
    /// All tokens of a text count, which a function always processes. Its keys and values do not: they are prepared. As
    /// in Python, the modulation of a DiT's blocks does not, though packages compute it in every step.
    func stepFLOPs(_ item: StepFunction, tokens: Int, hasRouters: Bool) -> Double {
        let dimensions = transformer.dimensions
        let width = Double(dimensions.hiddenSize)
        let blocks = item.capacities.reduce(0) { sum, kept in
            sum + transformer.blockFLOPs(kept: Double(kept), textTokens: Double(textTokens))
        }
        let routers = hasRouters ? 2 * Double(layers * tokens) * width : 0
        let patch = Double(dimensions.patchSize * dimensions.patchSize)
        let ends = 2 * Double(tokens) * width * patch * Double(dimensions.channels + dimensions.outputs)
        return blocks + routers + ends
    }
}
