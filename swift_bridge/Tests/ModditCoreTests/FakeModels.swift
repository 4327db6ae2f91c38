import Foundation

@testable import ModditCore

/// The stand-ins of scripts/golden_pipeline.py: arithmetic that no two programs can round apart.
enum FakeMath {
    /// States of tokens, (L, width): exact in single precision.
    static func states(_ ids: [Int32], width: Int) -> [Float] {
        ids.flatMap { id in (1...width).map { Float(Int(id) * $0 % 17) / 16 } }
    }

    /// Sum of the states of a text's tokens / 256, or the number of a class / 16.
    static func sum(_ condition: Condition) throws -> Float {
        if case .int32(let labels)? = condition.features["labels"]?.numbers { return Float(labels[0]) / 16 }
        let (states, mask) = (try condition.features.floats("text"), try condition.features.floats("text_mask"))
        let width = states.count / mask.count
        return states.indices.reduce(Float(0)) { $0 + states[$1] * mask[$1 / width] } / 256
    }

    /// What a model would predict for a batch.
    static func predict(_ input: DenoiserInput, size: PictureSize?) throws -> [Float] {
        let kept = Float(Double(input.function.capacities.reduce(0, +)) / 1024)
        var told: Float = 0
        if let size {
            told = Float(Double(size.height + 2 * size.width) / 1024 + Double(size.height) / Double(size.width))
        }
        let t = input.timestep / 1000
        let length = input.latents.count / input.conditions.count
        let offsets = try input.conditions.map { try sum($0) + kept + told }
        return input.latents.enumerated().map { index, x in
            let base: Float = (0.5 * x + t) / (1 + x * x)
            return base + offsets[index / length]
        }
    }

    /// A picture: each pixel is a third of its latent's value in the plane's channel.
    static func decode(_ latents: [Float], size: PictureSize, scale: Int) -> [Float] {
        let (height, width) = (size.height / scale, size.width / scale)
        var planes: [Float] = []
        for plane in 0..<3 {
            for y in 0..<size.height {
                let row = (plane * height + y / scale) * width
                for x in 0..<size.width { planes.append(latents[row + x / scale] / 3) }
            }
        }
        return planes
    }
}

/// Notes every call, in order.
actor Log {
    private(set) var inputs: [DenoiserInput] = []
    private(set) var unloaded: [String] = []
    private(set) var order: [String] = []

    func add(_ input: DenoiserInput) { inputs.append(input) }
    func add(unloaded name: String) { unloaded.append(name) }
    func add(_ name: String) { order.append(name) }
}

struct FakeTextEncoder: TextEncoding {
    let width: Int
    let log: Log

    func encode(_ tokens: UnigramTokenizer.Padded) async throws -> [Float] {
        FakeMath.states(tokens.ids, width: width)
    }

    func unload() async { await log.add(unloaded: "text_encoder") }
}

struct FakeDenoiser: Denoiser {
    let isToldSize: Bool
    let log: Log
    /// Called before each prediction.
    var before: (@Sendable (Int) async -> Void)?

    func predict(_ input: DenoiserInput) async throws -> [Float] {
        await before?(await log.inputs.count)
        await log.add(input)
        let size = PictureSize(height: input.function.height, width: input.function.width)
        return try FakeMath.predict(input, size: isToldSize ? size : nil)
    }

    func unload() async { await log.add(unloaded: "transformer") }
}

struct FakeDecoder: LatentDecoding {
    let scale: Int
    let log: Log

    func decode(_ latents: [Float], size: PictureSize) async throws -> [Float] {
        FakeMath.decode(latents, size: size, scale: scale)
    }

    func unload() async { await log.add(unloaded: "vae_decoder") }
}

/// Stands in for Core ML: runs the functions of a bundle's packages, those of a transformer in several packages too.
actor FakeRunner: PackageRunning {
    let manifest: Manifest
    let log: Log
    private var waiting: [UInt16: DenoiserInput] = [:]  // between two packages

    init(_ manifest: Manifest, log: Log) {
        self.manifest = manifest
        self.log = log
    }

    func run(
        _ package: Package, function: GraphFunction, inputs: [String: Tensor]
    ) async throws -> [String: Tensor] {
        await log.add("\(package.path) \(function.name)")
        var outputs: [String: Tensor] = [:]
        for (name, feature) in function.outputs {
            switch name {
            case "text":
                guard case .int32(let ids)? = inputs["input_ids"]?.numbers else { break }
                outputs[name] = try Tensor(FakeMath.states(ids, width: feature.shape[2]), shape: feature.shape)
            case "prediction":
                outputs[name] = try Tensor(await predict(function, inputs), shape: feature.shape)
            case "image":
                let size = PictureSize(height: feature.shape[2], width: feature.shape[3])
                let planes = FakeMath.decode(
                    try inputs.floats("latents"), size: size, scale: manifest.spec.vae.downscale)
                outputs[name] = try Tensor(planes, shape: feature.shape)
            default:
                let tag = UInt16(waiting.count)
                outputs[name] = try Tensor(.float16(Array(repeating: tag, count: feature.count)), shape: feature.shape)
            }
        }
        if outputs["tokens_out"] != nil { waiting[UInt16(waiting.count)] = try await read(function, inputs) }
        return outputs
    }

    func unload(_ package: Package) async { await log.add(unloaded: package.path) }

    private func predict(_ function: GraphFunction, _ inputs: [String: Tensor]) async throws -> [Float] {
        var size: [Float]?
        var input: DenoiserInput?
        if case .float16(let tags)? = inputs["tokens"]?.numbers {
            let isSame = inputs.values.allSatisfy { value in
                if case .float16(let values) = value.numbers { values.allSatisfy { $0 == tags[0] } } else { true }
            }
            input = isSame ? waiting[tags[0]] : nil
        } else {
            input = try await read(function, inputs)
            size = try inputs["resolution"]?.floats()
        }
        guard let input else { throw ModditError.missing("[test] nothing was handed over") }
        await log.add(input)
        let told = size.map { PictureSize(height: Int($0[0]), width: Int($0[1])) }
        return try FakeMath.predict(input, size: told)
    }

    /// Takes the features apart again.
    private func read(_ function: GraphFunction, _ inputs: [String: Tensor]) async throws -> DenoiserInput {
        let batch = inputs["latents"]?.shape[0] ?? 1
        let conditions = try (0..<batch).map { row in
            let names = ["text", "text_mask", "labels"].filter { inputs[$0] != nil }
            let features = try names.map { ($0, try inputs.row(row, of: $0)) }
            return Condition(features: Dictionary(uniqueKeysWithValues: features))
        }
        guard let item = manifest.graphs?.stepFunctions.first(where: { $0.function == function.name }) else {
            throw ModditError.missing("[test] no step function \(function.name)")
        }
        return DenoiserInput(
            function: item, latents: try inputs.floats("latents"), timestep: try inputs.floats("timestep")[0],
            conditions: conditions)
    }
}

extension Dictionary where Key == String, Value == Tensor {
    /// One row of a value of a batch.
    fileprivate func row(_ index: Int, of name: String) throws -> Tensor {
        guard let value = self[name] else { throw ModditError.missing("[test] no \(name)") }
        let shape = [1] + value.shape.dropFirst()
        let count = shape.reduce(1, *)
        let range = index * count..<(index + 1) * count
        if case .int32(let numbers) = value.numbers { return try Tensor(.int32(Array(numbers[range])), shape: shape) }
        return try Tensor(Array(value.floats()[range]), shape: shape)
    }
}
