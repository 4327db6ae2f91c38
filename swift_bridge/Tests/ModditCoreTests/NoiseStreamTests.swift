import Testing

@testable import ModditCore

struct NoiseStreamTests {
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

    /// Several tensors of one generator: small ones leave the second of a pair to the next small one.
    @Test func oneTensorAfterTheOtherEqualsPython() throws {
        let items = try Golden.items("noise.json", "streams")
        #expect(items.count == 5)
        for item in items {
            var stream = try NoiseStream(seed: item["seed"].integer())
            for values in try item["draws"].array().map({ try $0.floats }) {
                #expect(try difference(stream.normal(shape: [values.count]), values) <= Self.tolerance)
            }
        }
    }

    @Test(arguments: [Int128(UInt64.max) + 1, Int128(Int64.min) - 1])
    func badSeeds(seed: Int128) {
        #expect(throws: ModditError.self) { try NoiseStream(seed: seed) }
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
        #expect(throws: ModditError.self) { try draw(shape, "0") }
    }

    @Test func scalarShape() throws {
        #expect(try draw([], "7").count == 1)
        #expect(try draw([0, Int.max], "7").isEmpty)
    }

    private func draw(_ shape: [Int], _ seed: String) throws -> [Float] {
        var stream = try NoiseStream(seed: #require(Int128(seed)))
        return try stream.normal(shape: shape)
    }
}
