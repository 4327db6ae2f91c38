import Foundation

@testable import ModditCore

/// The stand-ins of scripts/golden_pipeline.py: arithmetic that no two programs can round apart.
enum FakeMath {
    /// States of tokens, (L, width): exact in single precision.
    static func states(_ ids: [Int32], width: Int) -> [Float] {
        ids.flatMap { id in (1...width).map { Float(Int(id) * $0 % 17) / 16 } }
    }

    /// For each row of a batch, the sum of the states of its text's tokens / 256, or the number of its class / 16.
    static func sums(_ told: [String: any FeatureValue]) throws -> [Float] {
        if case .int32(let labels)? = try told["labels"]?.tensor().numbers { return labels.map { Float($0) / 16 } }
        let (states, mask) = (try told.floats("text"), try told.floats("text_mask"))
        let width = states.count / mask.count
        var sums = [Float](repeating: 0, count: told["text"]?.shape[0] ?? 1)
        let length = states.count / sums.count
        for (index, state) in states.enumerated() { sums[index / length] += state * mask[index / width] }
        return sums.map { $0 / 256 }
    }

    /// What a model would predict for a batch.
    static func predict(_ input: DenoiserInput, size: PictureSize?) throws -> [Float] {
        let kept = Float(Double(input.function.capacities.reduce(0, +)) / 1024)
        var told: Float = 0
        if let size {
            told = Float(Double(size.height + 2 * size.width) / 1024 + Double(size.height) / Double(size.width))
        }
        let t = input.timestep / 1000
        let offsets = try sums(input.told).map { $0 + kept + told }
        let length = input.latents.count / offsets.count
        return input.latents.enumerated().map { index, x in
            let base: Float = (0.5 * x + t) / (1 + x * x)
            return base + offsets[index / length]
        }
    }

    /// Moments of a picture: means are every so many pixels of its planes, logarithms of variances 0.
    static func encode(_ planes: [Float], size: PictureSize, channels: Int, scale: Int) -> [Float] {
        var moments: [Float] = []
        for channel in 0..<channels {
            for y in stride(from: 0, to: size.height, by: scale) {
                let row = (channel % 3 * size.height + y) * size.width
                for x in stride(from: 0, to: size.width, by: scale) { moments.append(planes[row + x]) }
            }
        }
        return moments + [Float](repeating: 0, count: moments.count)
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

/// Tells rows as they are.
struct FakePreparation: Preparing {
    let log: Log

    func prepare(_ rows: [Condition]) async throws -> [String: any FeatureValue] { try Condition.batch(rows) }

    func unload() async { await log.add(unloaded: "prepare") }
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

struct FakeEncoder: ImageEncoding {
    let channels: Int
    let scale: Int
    let log: Log

    func encode(_ planes: [Float], size: PictureSize) async throws -> [Float] {
        FakeMath.encode(planes, size: size, channels: channels, scale: scale)
    }

    func unload() async { await log.add(unloaded: "vae_encoder") }
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
///
/// What a package hands on, or prepares, is filled with the number under which its meaning is kept here.
actor FakeRunner: PackageRunning {
    let manifest: Manifest
    let log: Log
    private var waiting: [DenoiserInput] = []  // between two packages
    private var prepared: [any FeatureValue] = []  // texts

    init(_ manifest: Manifest, log: Log) {
        self.manifest = manifest
        self.log = log
    }

    func run(
        _ package: Package, function: GraphFunction, inputs: [String: any FeatureValue]
    ) async throws -> [String: any FeatureValue] {
        await log.add("\(package.path) \(function.name)")
        var outputs: [String: any FeatureValue] = [:]
        for (name, feature) in function.outputs {
            switch name {
            case "text":
                guard case .int32(let ids)? = try inputs["input_ids"]?.tensor().numbers else { break }
                outputs[name] = try Tensor(FakeMath.states(ids, width: feature.shape[2]), shape: feature.shape)
            case "prediction":
                outputs[name] = try Tensor(await predict(function, inputs), shape: feature.shape)
            case "moments":
                let size = PictureSize(
                    height: function.inputs["image"]?.shape[2] ?? 0, width: function.inputs["image"]?.shape[3] ?? 0)
                let moments = FakeMath.encode(
                    try inputs.floats("image"), size: size, channels: feature.shape[1] / 2,
                    scale: manifest.spec.vae.downscale)
                outputs[name] = try Tensor(moments, shape: feature.shape)
            case "image":
                let size = PictureSize(height: feature.shape[2], width: feature.shape[3])
                let planes = FakeMath.decode(
                    try inputs.floats("latents"), size: size, scale: manifest.spec.vae.downscale)
                outputs[name] = try Tensor(planes, shape: feature.shape)
            default:
                let tag = UInt16(name.hasSuffix("_out") ? waiting.count : prepared.count)
                outputs[name] = try Tensor(.float16(Array(repeating: tag, count: feature.count)), shape: feature.shape)
            }
        }
        if outputs["tokens_out"] != nil { waiting.append(try read(function, inputs)) }
        if outputs["text_keys"] != nil, let text = inputs["text"] { prepared.append(text) }
        return outputs
    }

    func unload(_ package: Package) async { await log.add(unloaded: package.path) }

    private func predict(
        _ function: GraphFunction, _ inputs: [String: any FeatureValue]
    ) async throws -> [Float] {
        let handed = try tag(["tokens", "modulation", "embedded"], inputs)
        let input = try handed.map { waiting[$0] } ?? read(function, inputs)
        await log.add(input)
        let told = try inputs["resolution"]?.tensor().floats()
        return try FakeMath.predict(input, size: told.map { PictureSize(height: Int($0[0]), width: Int($0[1])) })
    }

    /// Finds the meaning of what a step is told.
    private func read(_ function: GraphFunction, _ inputs: [String: any FeatureValue]) throws -> DenoiserInput {
        guard let item = manifest.graphs?.stepFunctions.first(where: { $0.function == function.name }) else {
            throw ModditError.missing("[test] no step function \(function.name)")
        }
        var told = inputs.filter { ["text_mask", "labels"].contains($0.key) }
        if let text = try tag(["text_keys", "text_values"], inputs) { told["text"] = prepared[text] }
        return DenoiserInput(
            function: item, latents: try inputs.floats("latents"), timestep: try inputs.floats("timestep")[0],
            told: told)
    }

    /// The number that fills all inputs of some names; nil if there are none of them.
    private func tag(_ names: [String], _ inputs: [String: any FeatureValue]) throws -> Int? {
        let tags = try names.compactMap { try inputs[$0]?.tensor() }.flatMap { value -> [UInt16] in
            guard case .float16(let numbers) = value.numbers else { return [] }
            return numbers
        }
        guard Set(tags).count <= 1 else { throw ModditError.missing("[test] \(names) do not belong together") }
        return tags.first.map { Int($0) }
    }
}
