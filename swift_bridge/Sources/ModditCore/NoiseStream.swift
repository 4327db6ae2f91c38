import Foundation

// Port of moddit/noise.py, which is one of PyTorch's MT19937RNGEngine.h, DistributionsHelper.h and
// DistributionTemplates.h. Logarithm, sine and cosine are taken in double precision and rounded once, where PyTorch
// uses single-precision vector approximations (differences up to 1e-6).

/// What one of PyTorch's CPU generators draws, one tensor after the other, so that a seed means the same picture in every
/// backend.
struct NoiseStream: Sendable {
    /// Values that PyTorch makes at a time; smaller tensors take another road.
    private static let block = 16

    /// Most values that can be drawn at once: 1 GiB.
    static let mostValues = 1 << 28

    private var generator: MersenneTwister
    private var spare: [Float] = []  // the second of a pair, which the next small tensor begins with

    /// Begins as `torch.Generator("cpu").manual_seed(seed)`.
    ///
    /// - Parameter seed: -2^63 to 2^64 - 1; only its low 32 bits count, as in PyTorch.
    /// - Throws: `ModditError.valueRange` if it is outside its range.
    init(seed: some BinaryInteger) throws(ModditError) {
        guard Int64(exactly: seed) != nil || UInt64(exactly: seed) != nil else {
            throw .valueRange("[noise] seed out of range, got \(seed), want \(Int64.min)...\(UInt64.max)")
        }
        generator = MersenneTwister(seed: UInt32(truncatingIfNeeded: seed))
    }

    /// Draws what the next `torch.randn(shape, generator=...)` draws, within 1e-6.
    ///
    /// - Parameter shape: sizes, each at least 0.
    /// - Returns: the values in row-major order, as many as the product of `shape`.
    /// - Throws: `ModditError.valueRange` if a size is outside its range.
    mutating func normal(shape: [Int]) throws(ModditError) -> [Float] {
        let count = try Self.countValues(shape)
        return count >= Self.block ? blocks(count) : pairs(count)
    }

    private static func countValues(_ shape: [Int]) throws(ModditError) -> Int {
        let isEmpty = shape.contains(0)
        var count = isEmpty ? 0 : 1
        for size in shape {
            let (product, isTooLarge) = isEmpty ? (0, false) : count.multipliedReportingOverflow(by: size)
            guard size >= 0, !isTooLarge, product <= mostValues else {
                throw .valueRange("[noise] size out of range, got shape \(shape), want 0...\(mostValues) values")
            }
            count = product
        }
        return count
    }

    /// Makes 16 or more values, in blocks of 16; a partial one is redrawn whole, over the end of the last.
    private mutating func blocks(_ count: Int) -> [Float] {
        let block = Self.block
        var values = (0..<count).map { _ in generator.uniform24() }
        for start in stride(from: 0, through: count - block, by: block) { Self.boxMuller(&values, from: start) }
        if count % block != 0 {
            for index in count - block..<count { values[index] = generator.uniform24() }
            Self.boxMuller(&values, from: count - block)
        }
        return values
    }

    /// Makes fewer than 16 values, in pairs from uniform values of 53 random bits.
    private mutating func pairs(_ count: Int) -> [Float] {
        var values = spare
        while values.count < count {
            let angle = 2 * Double.pi * generator.uniform53()
            let radius = (-2 * log1p(-generator.uniform53())).squareRoot()
            values += [Float(radius * cos(angle)), Float(radius * sin(angle))]
        }
        spare = Array(values[count...])
        return Array(values[..<count])
    }

    /// Turns 16 uniform values into normal ones: the first 8 give radii, the last 8 angles.
    private static func boxMuller(_ values: inout [Float], from start: Int) {
        let half = block / 2
        for index in start..<start + half {
            let radius = (-2 * log(Double(1 - values[index]))).squareRoot()
            // PyTorch rounds the angle to single precision; near 2 pi that alone moves a value by more than 1e-6.
            let angle = Double(Float(2 * Double.pi) * values[index + half])
            values[index] = Float(radius * cos(angle))
            values[index + half] = Float(radius * sin(angle))
        }
    }
}

/// The generator MT19937, seeded by Knuth's recurrence.
struct MersenneTwister: Sendable {
    private static let size = 624
    private static let shift = 397
    private var state: [UInt32]
    private var position = MersenneTwister.size

    init(seed: UInt32) {
        state = [seed]
        state.reserveCapacity(Self.size)
        var last = seed
        for index in 1..<UInt32(Self.size) {
            last = 1_812_433_253 &* (last ^ (last >> 30)) &+ index
            state.append(last)
        }
    }

    /// Gives the next 32 bits.
    mutating func next() -> UInt32 {
        if position == Self.size { refill() }
        var word = state[position]
        position += 1
        word ^= word >> 11
        word ^= (word << 7) & 0x9D2C_5680
        word ^= (word << 15) & 0xEFC6_0000
        return word ^ (word >> 18)
    }

    /// Gives a value in [0, 1) with 24 random bits.
    mutating func uniform24() -> Float {
        Float(next() & 0xFF_FFFF) * 0x1p-24
    }

    /// Gives a value in [0, 1) with 53 random bits.
    mutating func uniform53() -> Double {
        let high = UInt64(next())
        return Double((high << 32 | UInt64(next())) & (1 << 53 - 1)) * 0x1p-53
    }

    private mutating func refill() {
        for index in 0..<Self.size {
            let mixed = (state[index] & 0x8000_0000) | (state[(index + 1) % Self.size] & 0x7FFF_FFFF)
            let twist: UInt32 = mixed & 1 == 1 ? 0x9908_B0DF : 0
            state[index] = state[(index + Self.shift) % Self.size] ^ (mixed >> 1) ^ twist
        }
        position = 0
    }
}
