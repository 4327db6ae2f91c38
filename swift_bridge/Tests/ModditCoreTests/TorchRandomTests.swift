import Testing

@testable import ModditCore

struct TorchRandomTests {
    /// One digit of single precision at the largest values, where sine and logarithm round apart between systems.
    static let tolerance: Float = 5e-7

    @Test func noiseEqualsPython() throws {
        let items = try Golden.items("noise.json", "noise")
        #expect(items.count == 90)
        for item in items {
            let parts = try item.array()
            let seed = try parts[1].string()
            let values = try draw(parts[0].integers, seed)
            #expect(try difference(Array(values.prefix(16)), parts[2].floats) <= Self.tolerance)
            #expect(try difference(Array(values.suffix(16)), parts[3].floats) <= Self.tolerance)
            let sum = values.reduce(0) { $0 + Double($1) }
            let squares = values.reduce(0) { $0 + Double($1) * Double($1) }
            let allowed = Double(Self.tolerance) * 0.01 * Double(values.count + 100)
            #expect(try abs(sum - parts[4].number()) <= allowed)
            #expect(try abs(squares - parts[5].number()) <= 10 * allowed)
        }
    }

    /// First outputs of MT19937 for the seed 5489, as C++'s standard has them (the 10,000th).
    @Test func generatorIsStandard() {
        var generator = MersenneTwister(seed: 5489)
        var last: UInt32 = 0
        for _ in 0..<10_000 { last = generator.next() }
        #expect(last == 4_123_659_995)
    }

    @Test(arguments: [[-1], [4, -1], [0, -1], [Int.max, Int.max], [1 << 29]])
    func badShapes(shape: [Int]) {
        #expect(throws: ModditError.self) { try TorchRandom.normal(shape: shape, seed: 0) }
    }

    @Test func scalarShape() throws {
        #expect(try TorchRandom.normal(shape: [], seed: 7).count == 1)
        #expect(try TorchRandom.normal(shape: [0, Int.max], seed: 7).isEmpty)
    }

    private func draw(_ shape: [Int], _ seed: String) throws -> [Float] {
        if let seed = Int64(seed) { return try TorchRandom.normal(shape: shape, seed: seed) }
        return try TorchRandom.normal(shape: shape, seed: #require(UInt64(seed)))
    }
}
