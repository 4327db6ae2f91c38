import Foundation
import Testing

@testable import ModditCore

struct ManifestTests {
    /// What moddit/cost.py counts, with routers and without, of both architectures.
    @Test(arguments: TestBundle.names) func flopsArePythons(name: String) throws {
        let item = try TestBundle.item(name)
        let manifest = try Manifest(item["manifest"])
        let (spec, scale) = (manifest.spec, manifest.spec.vae.downscale)
        for function in try #require(manifest.graphs).stepFunctions {
            let tokens = try spec.transformer.dimensions.tokens(
                height: function.height / scale, width: function.width / scale)
            let flops = spec.stepFLOPs(function, tokens: tokens, hasRouters: manifest.tokens.hasRouters)
            let wanted = try item["step_flops"][function.function].number()
            #expect(Double(function.batch) * flops == wanted)
        }
    }

    @Test(arguments: TestBundle.names)
    func readsWhatPythonWrites(name: String) throws {
        let manifest = try Manifest(Data(TestBundle.manifest(name).value.encoded.utf8))
        #expect(try manifest.fingerprint == TestBundle.manifest(name)["fingerprint"].string())
        #expect(manifest.backend == .coreml)
        #expect(manifest.spec.pixelsPerPatch == 8)
        #expect(manifest.spec.defaultSide == 32)
        #expect(manifest.provenance.source == "shapes – tiny")
        let graphs = try #require(manifest.graphs)
        #expect(graphs.minimumOS == ["iOS": "18.0", "macOS": "15.0"])
        for role in manifest.spec.roles {
            for package in try graphs.packages(for: role) {
                #expect(manifest.files(of: package).count == 3)
                #expect(manifest.hash(of: package).count == 64)
            }
        }
    }

    @Test func graphsOfEachKind() throws {
        let routed = try Manifest(TestBundle.manifest("routed"))
        #expect(routed.graphs?.stepFunctions.count == 12)
        #expect(routed.graphs?.sizes == [PictureSize(height: 32, width: 32), PictureSize(height: 32, width: 64)])
        #expect(routed.graphs?.batches == [2, 1])
        #expect(routed.tokens.name == .topk)
        #expect(routed.tokens.plan.regions == 4)
        let dense = try Manifest(TestBundle.manifest("dense"))
        #expect(dense.tokens.name == .dense)
        #expect(dense.tokens.plan.keepTenths == [[10], [10], [10]])
        #expect(dense.spec.transformer.features.first == ["timestep", "resolution", "aspect_ratio"])
        let chain = try Manifest(TestBundle.manifest("chain"))
        #expect(
            chain.graphs?.packages[.transformer]?.map(\.path) == [
                "Transformer1of2.mlpackage", "Transformer2of2.mlpackage",
            ])
        #expect(chain.graphs?.trainedPlan.keepTenths == [[5, 4, 9], [3, 4, 10], [3, 3, 10]])
        #expect(chain.graphs?.routing == .onehot)
        #expect(chain.components["transformer"]?.quantization.first?.tensors == ["proj_out.weight"])
    }

    @Test(arguments: [
        ("15.0", 15, 0, 0, true), ("15.0", 14, 9, 9, false), ("15", 26, 1, 0, true), ("15.4.1", 15, 4, 1, true),
        ("15.4.1", 15, 4, 0, false), ("15.4", 15, 10, 0, true), ("15.10", 15, 4, 0, false),
    ])
    func minimumOS(minimum: String, major: Int, minor: Int, patch: Int, isEnough: Bool) throws {
        let graphs = try Self.graphs(minimum)
        let version = OperatingSystemVersion(majorVersion: major, minorVersion: minor, patchVersion: patch)
        do throws(ModditError) {
            try graphs.check(system: "macOS", version: version)
            #expect(isEnough)
        } catch {
            #expect(!isEnough)
            #expect(error.kind == "unsupported")
            #expect(error.message.contains("needs macOS \(minimum), this is macOS \(major).\(minor).\(patch)"))
        }
        try graphs.check(system: "Linux", version: version)  // which has no minimum
    }

    private static let feature = JSON.object(["shape": .array([.integer(1)]), "dtype": .string("float32")])

    private static func graphs(_ minimum: String) throws -> Graphs {
        let changed = try TestBundle.manifest("routed").value.replacing(
            ["graphs", "minimum_os", "macOS"], with: .string(minimum))
        return try #require(try Manifest(JSONField(changed, place: "", component: "")).graphs)
    }

    @Test func functionOfAStep() throws {
        let graphs = try #require(try Manifest(TestBundle.manifest("routed")).graphs)
        let found = try graphs.stepFunction(size: PictureSize(height: 32, width: 64), batch: 1, region: 2)
        #expect(found.function == "px32x64_batch1_region0_2")
        #expect(found.capacities == [32, 10, 4])
        for (side, batch, region) in [(64, 1, 0), (32, 3, 0), (32, 1, 4), (32, 1, -1)] {
            #expect(throws: ModditError.self) {
                try graphs.stepFunction(size: PictureSize(height: side, width: side), batch: batch, region: region)
            }
        }
    }

    /// Each kind of change, and the kind and a part of the error it must give; `RefusalTests` has all that is refused.
    @Test(arguments: [
        ("format", JSON.string("other"), "format", "m: not a moddit bundle, want \"format\": 'moddit'"),
        ("format_version", .integer(4), "format", "m: format_version is unknown, got 4, want 5"),
        ("backend", .string("tflite"), "unsupported", "m: backend is 'tflite', want mlx or coreml; convert"),
        ("backend", .string("mlx"), "format", "m: backend is 'mlx' with graphs, want 'mlx' without"),
        ("fingerprint", .string("0"), "format", "m: fingerprint is '0', want 64 hexadecimal digits"),
        ("tokens.policy", .string("random"), "unsupported", "m: tokens.policy is 'random', want dense or topk"),
        ("tokens.policy", .string("dense"), "valueRange", "tokens.plan keeps [[10, 9, 10, 6], [3, 5, 3, 7], "),
        ("tokens.plan", .null, "format", "m: tokens.plan is null, want an object"),
        ("tokens.plan.keep_tenths.0.0", .integer(11), "valueRange", "plan.keep_tenths[0][0] is 11, want at most 10"),
        ("tokens.plan.regions", .integer(3), "shape", "m: tokens.plan.keep_tenths has rows of [4], want 3"),
        ("graphs.trained_plan", .null, "format", "m: graphs.trained_plan is null, want an object"),
        ("spec.transformer", .object([:]), "format", "spec.transformer has nothing, want an object"),
        ("spec.transformer.dit", .null, "format", "spec.transformer has 'dit', 'pixart', want an"),
        ("spec.conditioning.text.max_sequence_length", .integer(0), "valueRange", "is 0, want at least 1"),
        ("components.other", .object([:]), "format", "m: components has 'other', want an object with exactly"),
        ("graphs.step_functions.0.regions", .array([.integer(0), .integer(2), .integer(2)]), "shape", "want one"),
        ("spec.transformer.pixart.num_layers", .integer(4), "shape", "has 3 layers, want the transformer's 4"),
        ("spec.transformer.pixart.cross_attention_dim", .integer(17), "unsupported", "is 17, want the hidden size, 16"),
        ("spec.vae.scaling_factor", .integer(0), "valueRange", "m: spec.vae.scaling_factor is 0, want at least 1e-06"),
        ("spec.vae.use_quant_conv", .integer(1), "format", "m: spec.vae.use_quant_conv is 1, want true or false"),
        ("spec.vae", .array([.null, .array([.null])]), "format", "m: spec.vae is [null, [...]], want an object"),
        ("spec.vae", .null, "format", "m: spec.vae is null, want an object"),
        ("components.vae.files.0.path", .string("../a\n"), "format", "files[0].path is '../a\\n', want a path inside"),
        ("components.vae.files.0.bytes", .number(1e30), "format", "files[0].bytes is 1e+30, want an integer"),
        ("components.vae.files", .array([]), "format", "m: components.vae.files is of length 0, want at least 1"),
        ("graphs.step_functions.0.capacities.0", .integer(1), "shape", "the plan says [16, 5, 2] in region 0"),
        ("graphs.step_functions.0.regions.0", .integer(3), "missing", "for 32x32 pixels, batch 2, region 0"),
        ("graphs.step_functions.0.function", .string("absent"), "shape", "Transformer.mlpackage has functions ["),
        ("graphs.packages.vae_decoder.0.functions.0.inputs", .object(["x": feature]), "shape", "got no 'latents'"),
    ])
    func refuses(path: String, value: JSON, kind: String, part: String) throws {
        let original = try TestBundle.manifest("routed").value
        let place = path.split(separator: ".").map(String.init)
        let changed = original.replacing(place[...], with: value)
        do throws(ModditError) {
            _ = try Manifest(Data(changed.encoded.utf8), place: "m")
            Issue.record("\(path) = \(value) is accepted")
        } catch {
            #expect("\(error.kind)" == kind)
            #expect(error.message.contains(part), "\(error.message)")
        }
    }
}

struct LabelManifestTests {
    @Test func readsAModelThatDrawsClasses() throws {
        let manifest = try Manifest(TestBundle.manifest("labels"))
        #expect(manifest.spec.architecture == "dit")
        #expect(manifest.spec.conditioningKind == "label")
        #expect(manifest.spec.transformer.classes == 5)
        #expect(manifest.spec.components == ["transformer", "vae"])
        #expect(manifest.spec.roles == [.transformer, .vaeDecoder, .vaeEncoder])
        let unnamed = try TestBundle.manifest("labels").value.replacing(
            ["spec", "conditioning", "label", "names"], with: .array([]))
        _ = try Manifest(JSONField(unnamed, place: "m", component: "manifest"))
    }

    @Test(arguments: [
        ("spec.transformer.dit.num_classes", JSON.integer(4), "shape", "has num_classes 4, want as many as there are names"),
        ("spec.transformer.dit.caption_channels", .integer(4), "format", "spec.transformer.dit has 'caption_channels'"),
        ("spec.conditioning.label.names.0", .integer(1), "format", "conditioning.label.names[0] is 1, want a text"),
        ("components.tokenizer", .object([:]), "format", "components has 'tokenizer', want an object with exactly"),
        ("graphs.packages.text_encoder", .array([]), "format", "packages has 'text_encoder', want an object with"),
    ])
    func refuses(path: String, value: JSON, kind: String, part: String) throws {
        let place = path.split(separator: ".").map(String.init)
        let changed = try TestBundle.manifest("labels").value.replacing(place[...], with: value)
        do throws(ModditError) {
            _ = try Manifest(JSONField(changed, place: "m", component: "manifest"))
            Issue.record("\(path) = \(value) is accepted")
        } catch {
            #expect(error.kind == kind)
            #expect(error.message.contains(part), "\(error.message)")
        }
    }

    @Test func refusesAnotherConditioning() throws {
        let text = try TestBundle.manifest("chain")["spec"]["conditioning"].value
        let changed = try TestBundle.manifest("labels").value.replacing(["spec", "conditioning"], with: text)
        let wanted =
            "[manifest] m: spec.transformer has 'dit' conditioned on a text, want a label; convert the checkpoint again"
        #expect(throws: ModditError.unsupported(wanted)) {
            try Manifest(JSONField(changed, place: "m", component: "manifest"))
        }
    }

    @Test func hasNoTokenizer() throws {
        let files = try TestBundle("labels")
        defer { files.remove() }
        let bundle = try ModelBundle(folder: files.folder)
        #expect(throws: ModditError.self) { try bundle.tokenizer() }
    }
}

struct ModelBundleTests {
    @Test(arguments: TestBundle.names)
    func opensAndVerifies(name: String) throws {
        let files = try TestBundle(name)
        defer { files.remove() }
        let bundle = try ModelBundle(folder: files.folder)
        try bundle.verify(hashes: true)
        if bundle.manifest.spec.textTokens > 0 { #expect(try bundle.tokenizer().encode("a red circle").last == 1) }
        #expect(try bundle.graphs().stepFunctions.isEmpty == false)
    }

    @Test func missingManifest() {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-absent")
        expect("missing", "make a bundle with") { () throws(ModditError) in _ = try ModelBundle(folder: folder) }
    }

    @Test func truncatedManifest() throws {
        let whole = Data(try TestBundle.manifest("chain").value.encoded.utf8)
        let files = try TestBundle("chain", manifest: whole.prefix(whole.count / 2))
        defer { files.remove() }
        expect("format", "not JSON") { () throws(ModditError) in _ = try ModelBundle(folder: files.folder) }
    }

    @Test func damagedFiles() throws {
        let files = try TestBundle("routed")
        defer { files.remove() }
        let weights = files.folder.appendingPathComponent(
            "Transformer.mlpackage/Data/com.apple.CoreML/weights/weight.bin")
        let original = try Data(contentsOf: weights)
        try Data(original.map { $0 ^ 1 }).write(to: weights)
        let bundle = try ModelBundle(folder: files.folder)  // sizes are right
        expect("format", "sha256") { () throws(ModditError) in try bundle.verify(hashes: true) }
        try original.dropLast().write(to: weights)
        expect("format", "truncated") { () throws(ModditError) in _ = try ModelBundle(folder: files.folder) }
        try FileManager.default.removeItem(at: weights)
        expect("missing", "no such file") { () throws(ModditError) in _ = try ModelBundle(folder: files.folder) }
        try FileManager.default.createDirectory(at: weights, withIntermediateDirectories: false)
        expect("missing", "no such file") { () throws(ModditError) in _ = try ModelBundle(folder: files.folder) }
    }

    /// As in the cache of the Hub, where files are links to blobs elsewhere.
    @Test func filesMayBeLinksAndTheirFoldersNot() throws {
        let (files, elsewhere) = (try TestBundle("routed"), try TestBundle("routed"))
        defer { [files, elsewhere].forEach { $0.remove() } }
        let manager = FileManager.default
        let path = "Transformer.mlpackage/Data/com.apple.CoreML/weights"
        let (folder, other) = (files.folder.appendingPathComponent(path), elsewhere.folder.appendingPathComponent(path))
        let weights = folder.appendingPathComponent("weight.bin")
        try manager.removeItem(at: weights)
        try manager.createSymbolicLink(at: weights, withDestinationURL: other.appendingPathComponent("weight.bin"))
        try ModelBundle(folder: files.folder).verify(hashes: true)

        let inside = files.folder.appendingPathComponent("inside")
        try manager.moveItem(at: folder, to: inside)
        try manager.createSymbolicLink(at: folder, withDestinationURL: inside)
        try ModelBundle(folder: files.folder).verify(hashes: true)

        try manager.removeItem(at: folder)
        try manager.createSymbolicLink(at: folder, withDestinationURL: other)
        expect("format", "weight.bin: its folder is a link that leaves the bundle") { () throws(ModditError) in
            _ = try ModelBundle(folder: files.folder)
        }
        try manager.removeItem(at: folder)
        try manager.createSymbolicLink(at: folder, withDestinationURL: files.folder.appendingPathComponent("absent"))
        expect("missing", "weight.bin: no such file") { () throws(ModditError) in
            _ = try ModelBundle(folder: files.folder)
        }
    }

    /// A bundle may itself be reached through a link.
    @Test func linkedBundle() throws {
        let files = try TestBundle("chain")
        let link = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        try FileManager.default.createSymbolicLink(at: link, withDestinationURL: files.folder)
        defer {
            try? FileManager.default.removeItem(at: link)
            files.remove()
        }
        try ModelBundle(folder: link).verify(hashes: true)
    }

    /// Slashes that a combining character follows are slashes to the system, too.
    @Test func combiningCharacterBehindASlash() throws {
        let path = "TextEncoder.mlpackage/\u{338}größer/\u{301}x"
        let file = JSON.object([
            "path": .string(path), "bytes": .integer(path.utf8.count), "sha256": .string(SHA256Hash.hash(path.utf8)),
        ])
        let changed = try TestBundle.manifest("dense").value.replacing(
            ["components", "text_encoder", "files"], with: .array([file]))
        let files = try TestBundle("dense", changed: changed)
        defer { files.remove() }
        try ModelBundle(folder: files.folder).verify(hashes: true)
    }

    @Test func manifestThatIsNoRegularFile() throws {
        let files = try TestBundle("routed")
        defer { files.remove() }
        let manifest = files.folder.appendingPathComponent("manifest.json")
        try FileManager.default.removeItem(at: manifest)
        #expect(mkfifo(manifest.path, 0o600) == 0)  // which would be waited for
        expect("format", "manifest.json: is no regular file") { () throws(ModditError) in
            _ = try ModelBundle(folder: files.folder)
        }
    }

    @Test func manifestThatIsTooLarge() throws {
        let files = try TestBundle("routed", manifest: Data(repeating: 0x20, count: Bounds.jsonBytes + 1))
        defer { files.remove() }
        expect("format", "has 8388609 bytes, want at most 8388608") { () throws(ModditError) in
            _ = try ModelBundle(folder: files.folder)
        }
    }

    @Test func tamperedTokenizer() throws {
        let files = try TestBundle("routed")
        defer { files.remove() }
        let url = files.folder.appendingPathComponent("tokenizer.json")
        var bytes = try Data(contentsOf: url)
        bytes[bytes.count / 2] ^= 1
        try bytes.write(to: url)
        let bundle = try ModelBundle(folder: files.folder)
        expect("format", "sha256") { () throws(ModditError) in _ = try bundle.tokenizer() }
    }

    @Test func tokensBeyondTheTextEncoder() throws {
        let place = ["spec", "conditioning", "text", "encoder", "vocab_size"]
        let changed = try TestBundle.manifest("routed").value.replacing(place[...], with: .integer(7))
        let files = try TestBundle("routed", changed: changed)
        defer { files.remove() }
        let bundle = try ModelBundle(folder: files.folder)
        expect("shape", "want at most the text encoder's vocab_size, 7") { () throws(ModditError) in
            _ = try bundle.tokenizer()
        }
    }

    @Test func bundleOfAnotherRuntime() throws {
        let original = try TestBundle.manifest("dense").value
        let changed = original.replacing(["backend"], with: .string("mlx")).replacing(["graphs"], with: .null)
        let files = try TestBundle("dense", manifest: Data(changed.encoded.utf8))
        defer { files.remove() }
        let bundle = try ModelBundle(folder: files.folder)
        expect("unsupported", "--to coreml") { () throws(ModditError) in _ = try bundle.graphs() }
    }

    private func expect(_ kind: String, _ part: String, _ body: () throws(ModditError) -> Void) {
        do throws(ModditError) {
            try body()
            Issue.record("no error, want \(kind)")
        } catch {
            #expect(error.kind == kind)
            #expect(error.message.contains(part), "\(error.message)")
        }
    }
}

/// Whatever is wrong in a manifest, reading it gives a typed error or a manifest, never a crash.
struct ManifestFuzzTests {
    /// Every value in turn is dropped, or replaced by one of another kind or a huge number.
    @Test(arguments: ["dense", "labels", "chain"])
    func replacedValues(name: String) throws {
        let original = try TestBundle.manifest(name).value
        let others: [JSON?] = [
            nil, .null, .bool(true), .integer(-1), .integer(0), .integer(.max), .number(1e308), .number(0.5),
            .string("../x"), .array([]), .object([:]),
        ]
        var accepted = 0
        for place in original.places {
            for other in others {
                let changed = original.replacing(place[...], with: other)
                guard changed != original else { continue }
                accepted += outcome(JSONField(changed, place: "m", component: "manifest")) ? 1 : 0
            }
        }
        // texts such as the provenance, sizes of files, and names of features may be anything
        #expect(accepted < 40 * original.places.count / 10)
    }

    @Test func cutAndMutatedBytes() throws {
        let original = Array(try TestBundle.manifest("chain").value.encoded.utf8)
        var random = MersenneTwister(seed: 5)
        for length in stride(from: 0, to: original.count, by: 97) { bytes(Array(original[..<length])) }
        let alphabet = Array("{}[]\",:0123456789-.eE\\untrl ".utf8) + [0, 0x80, 0xC3, 0xFF]
        for _ in 0..<600 {
            var changed = original
            for _ in 0...random.next() % 3 {
                changed[Int(random.next()) % changed.count] = alphabet[Int(random.next()) % alphabet.count]
            }
            bytes(changed)
        }
    }

    private func bytes(_ bytes: [UInt8]) {
        do throws(ModditError) {
            let value = try JSON.parse(Data(bytes), place: "m", component: "manifest")
            _ = outcome(JSONField(value, place: "m", component: "manifest"))
        } catch {
            #expect(error.message.hasPrefix("[manifest] m"))
        }
    }

    /// Whether it is accepted; then everything in it can be used.
    private func outcome(_ field: JSONField) -> Bool {
        do throws(ModditError) {
            let manifest = try Manifest(field)
            for item in manifest.graphs?.stepFunctions ?? [] {
                let size = PictureSize(height: item.height, width: item.width)
                _ = try manifest.graphs?.stepFunction(size: size, batch: item.batch, region: item.regions.first ?? 0)
            }
            _ = manifest.components.values.map(\.bytes)
            return true
        } catch {
            #expect(error.message.hasPrefix("["))
            return false
        }
    }
}

extension ModditError {
    /// Name of the case.
    var kind: String {
        switch self {
        case .format: "format"
        case .missing: "missing"
        case .shape: "shape"
        case .valueRange: "valueRange"
        case .unsupported: "unsupported"
        case .outputExists: "outputExists"
        case .storage: "storage"
        case .compute: "compute"
        }
    }
}
