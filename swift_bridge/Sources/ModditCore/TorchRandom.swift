import Foundation

// Port of moddit/noise.py, which is one of PyTorch's MT19937RNGEngine.h, DistributionsHelper.h and
// DistributionTemplates.h. Logarithm, sine and cosine are taken in double precision and rounded once, where PyTorch
// uses single-precision vector approximations (differences up to 1e-6).

/// Seeded noise that equals PyTorch's CPU generator, so that a seed means the same picture in every backend.
enum TorchRandom {
    /// Values that PyTorch makes at a time; smaller tensors take another road.
    private static let block = 16

    /// Most values that can be drawn at once: 1 GiB.
    static let mostValues = 1 << 28

    /// Draws what `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` draws, within 1e-6.
    ///
    /// - Parameters:
    ///   - shape: sizes, each at least 0.
    ///   - seed: -2^63 to 2^64 - 1; only its low 32 bits count, as in PyTorch.
    /// - Returns: the values in row-major order, as many as the product of `shape`.
    /// - Throws: `ModditError.valueRange` if the seed or a size is outside its range.
    static func normal(shape: [Int], seed: some BinaryInteger) throws(ModditError) -> [Float] {
        guard Int64(exactly: seed) != nil || UInt64(exactly: seed) != nil else {
            throw .valueRange("[noise] seed out of range, got \(seed), want \(Int64.min)...\(UInt64.max)")
        }
        let count = try countValues(shape)
        var generator = MersenneTwister(seed: UInt32(truncatingIfNeeded: seed))
        return count >= block ? blocks(&generator, count) : pairs(&generator, count)
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
    private static func blocks(_ generator: inout MersenneTwister, _ count: Int) -> [Float] {
        var values = (0..<count).map { _ in generator.uniform24() }
        for start in stride(from: 0, through: count - block, by: block) { boxMuller(&values, from: start) }
        if count % block != 0 {
            for index in count - block..<count { values[index] = generator.uniform24() }
            boxMuller(&values, from: count - block)
        }
        return values
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

    /// Makes fewer than 16 values, in pairs from uniform values of 53 random bits; an odd count drops one.
    private static func pairs(_ generator: inout MersenneTwister, _ count: Int) -> [Float] {
        var values: [Float] = []
        while values.count < count {
            let angle = 2 * Double.pi * generator.uniform53()
            let radius = (-2 * log1p(-generator.uniform53())).squareRoot()
            values += [Float(radius * cos(angle)), Float(radius * sin(angle))]
        }
        return Array(values.prefix(count))
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
