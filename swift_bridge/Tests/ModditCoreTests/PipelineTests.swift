import Foundation
import Testing

@testable import ModditCore

struct PipelineTests {
    /// As SamplerTests.finalTolerance: only the weights of samplers may round apart.
    static let tolerance: Float = 4e-6

    /// Every run of the Python reference: tokens, function calls with their inputs, latents, and the file's texts.
    @Test(arguments: [false, true])
    func runsEqualPython(asPackages: Bool) async throws {
        let items = try Golden.items("pipelines.json", "runs")
        #expect(items.count == 17)
        for item in items {
            let log = Log()
            var request = try Request(item["settings"])
            let pipeline = try Self.pipeline(item["bundle"].string(), log: log, asPackages: asPackages)
            if let edit = try item.object()["edit"], try !edit["is_sized"].bool() { request.size = nil }
            let edit = try item.object()["edit"].map { try EditGolden.edit($0) }
            let picture = try await pipeline.generate(request, from: edit)
            #expect(try difference(picture.latents, item["final"].floats) <= Self.tolerance)
            try await expectSameCalls(log.inputs, item["calls"].array())
            if edit != nil {
                #expect(try picture.image.digest == item["picture"].string())
            } else {
                let planes = FakeMath.decode(picture.latents, size: picture.metadata.size, scale: 4)
                let image = try PixelImage(planes: planes, height: picture.image.height, width: picture.image.width)
                #expect(picture.image == image)
            }
            #expect(try picture.metadata.json == item["metadata"].string())
            #expect(try picture.metadata.parameters == item["parameters"].string())
        }
    }

    @Test func tokensEqualPython() throws {
        let tokenizer = try UnigramTokenizer(Golden.data("embedded-tokenizer.json"))
        for item in try Golden.items("pipelines.json", "runs") {
            let request = try Request(item["settings"])
            guard request.label == nil else { continue }
            let isGuided = try #require(request.guidanceScale) > 1
            let texts = isGuided ? [request.negativePrompt, request.prompt] : [request.prompt]
            let rows = try item["ids"].array()
            #expect(rows.count == texts.count)
            for (row, text) in zip(rows, texts) {
                let wanted = try row.integers
                #expect(try tokenizer.encodeCaption(text, length: wanted.count).ids.map { Int($0) } == wanted)
            }
        }
    }

    @Test func sizesAreTheBundles() throws {
        let pipeline = try Self.pipeline("routed", log: Log())
        #expect(pipeline.sizes == [PictureSize(height: 32, width: 32), PictureSize(height: 32, width: 64)])
    }

    @Test func packageVersionIsPythons() throws {
        #expect(try Golden.read("pipelines.json")["version"].string() == PictureMetadata.packageVersion)
    }

    @Test func stagesWithPreviews() async throws {
        let pipeline = try Self.pipeline("routed", log: Log())
        var (counts, steps, pictures) = ([Int](), [StepResult](), 0)
        for try await stage in pipeline.stages(Request(prompt: "a red circle", steps: 5), previews: true) {
            switch stage {
            case .encoded(let tokens): counts = tokens
            case .step(let step): steps.append(step)
            case .decoded: pictures += 1
            }
        }
        #expect(counts.count == 2)
        #expect(counts[0] == 1)
        #expect(steps.map(\.index) == [0, 1, 2, 3, 4])
        #expect(steps.map(\.region) == [3, 3, 2, 1, 0])
        #expect(steps.allSatisfy { $0.total == 5 && $0.preview?.width == 8 && $0.preview?.height == 8 })
        #expect(pictures == 1)
    }

    @Test func pictureTellsHowItWasMade() async throws {
        let pipeline = try Self.pipeline("dense", log: Log())
        let picture = try await pipeline.generate(Request(prompt: "ein Kreis ○", steps: 2))
        let png = try picture.png()
        #expect(png.range(of: Data(picture.metadata.json.utf8)) != nil)
        #expect(png.range(of: Data(picture.metadata.parameters.utf8)) != nil)
        #expect(try await pipeline.generate(Request(prompt: "ein Kreis ○", steps: 2)).png() == png)
    }

    @Test func memoryIsGivenBack() async throws {
        for reducesMemory in [true, false] {
            let log = Log()
            let pipeline = try Self.pipeline("chain", log: log, asPackages: true, reducesMemory: reducesMemory)
            _ = try await pipeline.generate(Request(prompt: "x", steps: 1))
            let all = [
                "TextEncoder.mlpackage", "Prepare.mlpackage", "VAEEncoder.mlpackage", "Transformer1of2.mlpackage",
                "Transformer2of2.mlpackage", "VAEDecoder.mlpackage",
            ]
            #expect(await log.unloaded == (reducesMemory ? all.filter { $0 != "VAEEncoder.mlpackage" } : []))
            let before = await log.unloaded
            await pipeline.unload()
            #expect(await log.unloaded == before + all)
            _ = try await pipeline.generate(
                Request(prompt: "x", steps: 2), from: Edit(image: .pattern(height: 8, width: 8)))
            #expect(await log.unloaded == before + all + (reducesMemory ? all : []))
        }
    }

    @Test func packagesOfAChainRunInOrder() async throws {
        let log = Log()
        let pipeline = try Self.pipeline("chain", log: log, asPackages: true)
        _ = try await pipeline.generate(Request(prompt: "x", steps: 2, sampler: .ddim))
        #expect(
            await log.order == [
                "TextEncoder.mlpackage encode", "TextEncoder.mlpackage encode", "Prepare.mlpackage batch2",
                "Transformer1of2.mlpackage px32x32_batch2_region2", "Transformer2of2.mlpackage px32x32_batch2_region2",
                "Transformer1of2.mlpackage px32x32_batch2_region0_1",
                "Transformer2of2.mlpackage px32x32_batch2_region0_1",
                "VAEDecoder.mlpackage px32x32",
            ])
    }

    /// A model that draws classes: there is no text encoder, and every package of the chain runs.
    @Test func labelsAreDrawnWithoutATextEncoder() async throws {
        let log = Log()
        let pipeline = try Self.pipeline("labels", log: log, asPackages: true)
        #expect(pipeline.labels.prefix(2) == ["tench, Tinca tinca", "golden retriever"])
        _ = try await pipeline.generate(Request(label: try pipeline.label("Golden Retriever"), steps: 1))
        let rows = try await log.inputs.map { try $0.told["labels"]?.tensor().numbers }
        #expect(rows == [.int32([5, 1])])
        #expect(
            await log.order.map { $0.prefix { $0 != "." } } == ["Transformer1of2", "Transformer2of2", "VAEDecoder"])
        let wanted = "[request] prompt is 'a dog', but this model draws a class; want a label alone"
        await #expect(throws: ModditError.unsupported(wanted)) {
            try await pipeline.generate(Request(prompt: "a dog"))
        }
    }

    @Test func cancellationStopsBeforeTheNextCall() async throws {
        let log = Log()
        let manifest = try Manifest(TestBundle.manifest("routed"))
        let stop: @Sendable (Int) async -> Void = { count in
            if count == 2 { withUnsafeCurrentTask { $0?.cancel() } }
        }
        let denoiser = FakeDenoiser(isToldSize: false, log: log, before: stop)
        let pipeline = try Self.pipeline(manifest, denoiser: denoiser, log: log)
        let task = Task { try await pipeline.generate(Request(prompt: "x", steps: 9)) }
        await #expect(throws: CancellationError.self) { try await task.value }
        #expect(await log.inputs.count == 3)
    }

    @Test func stoppingToReadCancels() async throws {
        let log = Log()
        let manifest = try Manifest(TestBundle.manifest("routed"))
        let pause: @Sendable (Int) async -> Void = { _ in try? await Task.sleep(for: .milliseconds(5)) }
        let denoiser = FakeDenoiser(isToldSize: false, log: log, before: pause)
        let pipeline = try Self.pipeline(manifest, denoiser: denoiser, log: log)
        for try await stage in pipeline.stages(Request(prompt: "x", steps: 200)) {
            if case .step = stage { break }
        }
        try await Task.sleep(for: .milliseconds(60))
        #expect(await log.inputs.count < 100)
    }

    @Test func errorsOfAPartArePassedOnAndMemoryIsGivenBack() async throws {
        let log = Log()
        let manifest = try Manifest(TestBundle.manifest("routed"))
        let graphs = try #require(manifest.graphs)
        let runner = FakeRunner(manifest, log: log)
        let pipeline = Pipeline(
            manifest: manifest,
            conditioning: try Self.conditioning(manifest) { _ in FakeTextEncoder(width: 9, log: log) },
            preparation: GraphPreparation(graphs, runner: runner),
            denoiser: try GraphDenoiser(graphs, spec: manifest.spec, runner: runner),
            encoder: try GraphEncoder(graphs, runner: runner),
            decoder: try GraphDecoder(graphs, spec: manifest.spec.vae, runner: runner), reducesMemory: true)
        await #expect(throws: ModditError.self) { try await pipeline.generate(Request(prompt: "x")) }
        let all = [
            "text_encoder", "Prepare.mlpackage", "VAEEncoder.mlpackage", "Transformer.mlpackage",
            "VAEDecoder.mlpackage",
        ]
        #expect(await log.unloaded == all)
    }

    @Test func badRequests() async throws {
        let log = Log()
        let pipeline = try Self.pipeline("routed", log: log)
        let small = PictureSize(height: 8, width: 8)
        let bad = [
            Request(prompt: "x", steps: 0), Request(prompt: "x", steps: 1001),
            Request(prompt: "x", guidanceScale: -1), Request(prompt: "x", guidanceScale: .nan),
            Request(prompt: "x", guidanceScale: 1000.5), Request(prompt: "x", seed: 1 << 64),
            Request(prompt: "x", seed: -1 - (1 << 63)),
            Request(prompt: String(repeating: "e\u{301}", count: Bounds.prompt / 2 + 1)),
            Request(prompt: "x", negativePrompt: String(repeating: "x", count: Bounds.prompt + 1)),
            Request(prompt: "x", size: small), Request(label: 1),
        ]
        for request in bad {
            await #expect(throws: ModditError.self) { try await pipeline.generate(request) }
        }
        #expect(await log.inputs.isEmpty)
    }

    static func pipeline(
        _ name: String, log: Log, asPackages: Bool = false, reducesMemory: Bool = false
    ) throws -> Pipeline {
        let manifest = try Manifest(TestBundle.manifest(name))
        guard asPackages, let graphs = manifest.graphs else {
            let isToldSize = manifest.spec.transformer.features.first.contains("resolution")
            return try pipeline(manifest, denoiser: FakeDenoiser(isToldSize: isToldSize, log: log), log: log)
        }
        let runner = FakeRunner(manifest, log: log)
        return Pipeline(
            manifest: manifest,
            conditioning: try conditioning(manifest) { _ in try GraphTextEncoder(graphs, runner: runner) },
            preparation: GraphPreparation(graphs, runner: runner),
            denoiser: try GraphDenoiser(graphs, spec: manifest.spec, runner: runner),
            encoder: try GraphEncoder(graphs, runner: runner),
            decoder: try GraphDecoder(graphs, spec: manifest.spec.vae, runner: runner), modelPath: "out/bundle",
            reducesMemory: reducesMemory, versions: ["moddit": "0.1.0", "mlx": "0.0"])
    }

    static func pipeline(_ manifest: Manifest, denoiser: FakeDenoiser, log: Log) throws -> Pipeline {
        Pipeline(
            manifest: manifest,
            conditioning: try conditioning(manifest) { FakeTextEncoder(width: $0.encoder.width, log: log) },
            preparation: FakePreparation(log: log), denoiser: denoiser,
            encoder: FakeEncoder(
                channels: manifest.spec.vae.latentChannels, scale: manifest.spec.vae.downscale, log: log),
            decoder: FakeDecoder(scale: manifest.spec.vae.downscale, log: log),
            modelPath: "out/bundle", versions: ["moddit": "0.1.0", "mlx": "0.0"])
    }

    /// What a bundle draws from, with another text encoder than its package.
    private static func conditioning(
        _ manifest: Manifest, _ encoder: (TextSpec) throws -> any TextEncoding
    ) throws -> any Conditioning {
        if let label = manifest.spec.conditioning as? LabelSpec {
            return label.open(classes: manifest.spec.transformer.classes)
        }
        let text = try #require(manifest.spec.conditioning as? TextSpec)
        return TextConditioning(
            tokenizer: try UnigramTokenizer(Golden.data("embedded-tokenizer.json")), encoder: try encoder(text),
            length: text.maxSequenceLength, width: text.encoder.width)
    }

    /// Function, timestep, sum of each text's states, and both ends of the latents.
    private func expectSameCalls(_ found: [DenoiserInput], _ wanted: [JSONField]) throws {
        #expect(found.count == wanted.count)
        for (call, item) in zip(found, wanted) {
            let parts = try item.array()
            #expect(try call.function.function == parts[0].string())
            #expect(try call.timestep == Float(parts[1].number()))
            #expect(try FakeMath.sums(call.told) == parts[2].floats)
            let ends = Array(call.latents.prefix(2) + call.latents.suffix(2))
            #expect(try difference(ends, parts[3].floats) <= Self.tolerance)
        }
    }
}

struct ConditioningTests {
    private let labels = LabelConditioning(
        classes: 3, labels: LabelNames(classes: 3, names: ["tench, Tinca tinca", "golden retriever", "crane, Crane"]))

    @Test func classesAreNumbersOfRows() async throws {
        let guided = try await labels.encode(Request(label: 1), isGuided: true)
        #expect(try Condition.batch(guided.rows) == ["labels": Tensor(.int32([3, 1]), shape: [2])])
        let alone = try await labels.encode(Request(label: 1), isGuided: false)
        #expect(try Condition.batch(alone.rows) == ["labels": Tensor(.int32([1]), shape: [1])])
        #expect(alone.tokens.isEmpty)
    }

    @Test func whatALabelModelRefuses() throws {
        try labels.check(Request(label: 2))
        for label in [-1, 3, Int.max] {
            #expect(throws: ModditError.valueRange("[request] label out of range, got \(label), want 0..2")) {
                try labels.check(Request(label: label))
            }
        }
        let wanted = "[request] prompt is 'a dog', but this model draws a class; want a label alone"
        #expect(throws: ModditError.unsupported(wanted)) { try labels.check(Request(prompt: "a dog")) }
        let missing = "[request] no label, though this model draws a class; want its number in 0..2"
        #expect(throws: ModditError.missing(missing)) { try labels.check(Request(prompt: "")) }
    }

    @Test(arguments: [
        ("tench", 0), ("Tinca tinca", 0), (" GOLDEN retriever ", 1), ("crane", 2), ("Crane", 2), ("2", 2), (" 0 ", 0),
    ])
    func classesByName(text: String, number: Int) throws {
        #expect(try labels.labels?.number(of: text) == number)
    }

    @Test(arguments: [
        ("3", "[label] class '3' out of range, want 0..2"),
        ("99999999999999999999", "[label] class '99999999999999999999' out of range, want 0..2"),
        (
            "golden retreiver",
            "[label] no class is called 'golden retreiver'; want a number in 0..2 or a name such as 'golden retriever'"
        ),
        ("tensh", "[label] no class is called 'tensh'; want a number in 0..2 or a name such as 'tench'"),
        (
            "zzzzzzzzzzzz",
            "[label] no class is called 'zzzzzzzzzzzz'; want a number in 0..2 or a name such as 'tench', "
                + "'Tinca tinca', 'golden retriever', 'crane', 'Crane'"
        ),
        (
            "",
            "[label] no class is called ''; want a number in 0..2 or a name such as 'tench', 'Tinca tinca', "
                + "'golden retriever', 'crane', 'Crane'"
        ),
    ])
    func unknownClasses(text: String, message: String) {
        do throws(ModditError) {
            _ = try labels.labels?.number(of: text)
            Issue.record("'\(text)' is a class")
        } catch {
            #expect(error.message == message)
        }
    }

    @Test func classesWithoutNames() throws {
        let numbers = LabelNames(classes: 10, names: [])
        #expect(try numbers.number(of: "9") == 9)
        let wanted = "[label] no class is called 'x'; this model's classes have no names, want a number in 0..9"
        #expect(throws: ModditError.missing(wanted)) { try numbers.number(of: "x") }
    }

    @Test func namesAreFoundByPipelines() throws {
        let pipeline = try PipelineTests.pipeline("routed", log: Log())
        #expect(pipeline.labels.isEmpty)
        let wanted = "[request] label is 'crane', but this model draws a text; want a prompt alone"
        #expect(throws: ModditError.unsupported(wanted)) { try pipeline.label("crane") }
    }
}

struct DenoisingScheduleTests {
    @Test func equalsPython() throws {
        let items = try Golden.items("manifests.json", "schedules")
        #expect(items.count > 20)
        for item in items {
            let manifest = try Manifest(TestBundle.manifest(item["bundle"].string()))
            let size = try PictureSize(height: item["height"].integer(), width: item["width"].integer())
            let schedule = try DenoisingSchedule(
                manifest, size: size, batch: item["batch"].integer(),
                sampler: #require(Sampler(rawValue: item["sampler"].string())), steps: item["steps"].integer())
            let rows = try item["rows"].array()
            #expect(schedule.steps.count == rows.count)
            for (step, row) in zip(schedule.steps, rows) {
                let parts = try row.array()
                #expect(try step.index == parts[0].integer())
                #expect(try step.sampler.timestep == parts[1].number())
                #expect(try step.region == parts[2].integer())
                #expect(try step.function.function == parts[3].string())
                #expect(try step.function.capacities == parts[4].integers)
            }
        }
    }

    @Test func batching() throws {
        #expect(try Batching(rows: 2, batches: [1, 2]) == .together)
        #expect(try Batching(rows: 2, batches: [2]) == .together)
        #expect(try Batching(rows: 2, batches: [1]) == .apart)
        #expect(try Batching(rows: 1, batches: [1, 2]) == .single)
        #expect(try Batching(rows: 1, batches: [2]) == .doubled)
        #expect(throws: ModditError.self) { try Batching(rows: 1, batches: [4]) }
    }
}

struct MemoryEstimateTests {
    @Test func memoryWarnings() throws {
        let manifest = try Manifest(TestBundle.manifest("routed"))
        let all = MemoryEstimate(manifest, reducesMemory: false)
        let one = MemoryEstimate(manifest, reducesMemory: true)
        #expect(all.peak > one.peak)
        #expect(all.warnings(physicalMemory: UInt64(all.peak) * 4).isEmpty)
        #expect(all.warnings(physicalMemory: UInt64(all.peak)).count == 1)
    }
}

struct TensorTests {
    @Test func rowsMayBeApart() throws {
        let memory: [Float] = [0, 1, 2, -1, 3, 4, 5, -1]
        try memory.withUnsafeBytes { bytes in
            let tensor = try Tensor(bytes, shape: [2, 3], strides: [4, 1], dtype: .float32)
            #expect(try tensor.floats() == [0, 1, 2, 3, 4, 5])
            let columns = try Tensor(bytes, shape: [3, 2], strides: [1, 4], dtype: .float32)
            #expect(try columns.floats() == [0, 3, 1, 4, 2, 5])
            let empty = try Tensor(bytes, shape: [0, .max], strides: [1, 2], dtype: .float32)
            #expect(try empty.floats() == [])
            for (shape, strides) in [([2, 4], [4, 2]), ([9], [1]), ([2], [8]), ([2], [-1]), ([2, 2], [1])] {
                #expect(throws: ModditError.self) {
                    try Tensor(bytes, shape: shape, strides: strides, dtype: .float32)
                }
            }
        }
        var target = [Float](repeating: 9, count: 8)
        try target.withUnsafeMutableBytes { bytes in
            try Tensor([0, 1, 2, 3, 4, 5], shape: [2, 3]).copy(to: bytes, strides: [4, 1])
            #expect(throws: ModditError.self) {
                try Tensor([0, 1, 2, 3, 4, 5], shape: [2, 3]).copy(to: bytes, strides: [6, 1])
            }
        }
        #expect(target == [0, 1, 2, 9, 3, 4, 5, 9])
    }

    @Test func joining() throws {
        let joined = try Tensor(joining: [Tensor([1, 2], shape: [1, 2]), Tensor([3, 4, 5, 6], shape: [2, 2])])
        #expect(try joined == Tensor([1, 2, 3, 4, 5, 6], shape: [3, 2]))
        #expect(throws: ModditError.self) { try Tensor(joining: []) }
        #expect(throws: ModditError.self) {
            try Tensor(joining: [Tensor([1], shape: [1]), Tensor([1], shape: [1, 1])])
        }
        #expect(throws: ModditError.self) {
            try Tensor(joining: [Tensor([1], shape: [1]), Tensor(.int32([1]), shape: [1])])
        }
    }

    @Test func shapesMustFit() throws {
        #expect(throws: ModditError.self) { try Tensor([1, 2], shape: [3]) }
        #expect(throws: ModditError.self) { try Tensor([1], shape: [Int.max, 3]) }
        #expect(throws: ModditError.self) { try Tensor([], shape: [-1, 0]) }
        #expect(throws: ModditError.self) { try Tensor(.int32([1]), shape: [1]).floats() }
    }
}

extension Request {
    /// Reads the request of a golden run.
    init(_ field: JSONField) throws {
        let seed: Int128 =
            switch try field["seed"].value {
            case .unsigned(let seed): Int128(seed)
            default: Int128(try field["seed"].integer())
            }
        try self.init(
            prompt: field["prompt"].string(), negativePrompt: field["negative_prompt"].string(),
            seed: seed, steps: field["steps"].integer(),
            guidanceScale: field["guidance_scale"].number(),
            size: PictureSize(height: field["height"].integer(), width: field["width"].integer()),
            sampler: Sampler(rawValue: field["sampler"].string()))
        label = try field.object()["label"]?.integer()
        reuse = try field.object()["reuse"]?.integer() ?? 1
    }
}
