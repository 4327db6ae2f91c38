import Foundation

@testable import ModditCore
@testable import moddit_cli

/// The folder of the repository that this package is a folder of.
let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().deletingLastPathComponent()

/// A new folder for files of a test.
func makeFolder() throws -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-test-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    return folder
}

/// A bundle of manifests.json in a folder; every file holds its own path, but the tokenizer.
func writeBundle(_ name: String) throws -> URL {
    let golden = repository.appendingPathComponent("swift_bridge/Tests/ModditCoreTests/Golden")
    let value = try JSON.parse(
        Data(contentsOf: golden.appendingPathComponent("manifests.json")), place: "manifests", component: "test")
    guard case .object(let file) = value, case .array(let items)? = file["manifests"] else {
        throw ModditError.format("[test] no manifests")
    }
    for case .object(let item) in items where item["name"] == .string(name) {
        guard let manifest = item["manifest"] else { continue }
        let folder = try makeFolder()
        try Data(manifest.text.utf8).write(to: folder.appendingPathComponent(Manifest.fileName))
        let read = try Manifest(Data(manifest.text.utf8))
        for path in read.components.values.flatMap(\.files).map(\.path) {
            let url = folder.appendingPathComponent(path)
            try FileManager.default.createDirectory(
                at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
            let tokenizer = golden.appendingPathComponent("embedded-tokenizer.json")
            try (path == "tokenizer.json" ? Data(contentsOf: tokenizer) : Data(path.utf8)).write(to: url)
        }
        return folder
    }
    throw ModditError.missing("[test] no bundle '\(name)'")
}

/// Notes what happens, in order.
final class Notes<Item: Sendable>: @unchecked Sendable {
    private let lock = NSLock()
    private var found: [Item] = []

    var items: [Item] { lock.withLock { found } }

    func add(_ item: Item) { lock.withLock { found.append(item) } }
}

/// Stands in for Core ML: it compiles into a cache, gives zeros, and places all but what selects tokens on the GPU.
struct FakeCoreML: FunctionMeasuring {
    let bundle: ModelBundle
    let cache: CompiledModelCache

    func load(_ package: Package, function: GraphFunction) async throws -> LoadReport {
        let model = try await cache.model(of: package, in: bundle) { _ in try makeFolder() }
        return LoadReport(
            package: package.path, function: function.name, origin: model.origin, compileSeconds: 0, loadSeconds: 0)
    }

    func run(
        _ package: Package, function: GraphFunction, inputs: [String: any FeatureValue]
    ) async throws -> [String: any FeatureValue] {
        var outputs: [String: any FeatureValue] = [:]
        for (name, feature) in function.outputs {
            let numbers: Tensor.Numbers =
                switch feature.dtype {
                case .float32: .float32(Array(repeating: 0, count: feature.count))
                case .float16: .float16(Array(repeating: 0, count: feature.count))
                case .int32: .int32(Array(repeating: 0, count: feature.count))
                }
            outputs[name] = try Tensor(numbers, shape: feature.shape)
        }
        return outputs
    }

    func unload(_ package: Package) async {}

    func hold(_ tensor: Tensor) -> any FeatureValue { tensor }

    func place(_ package: Package, function: GraphFunction) async throws -> Placement {
        guard package.path != "VAEEncoder.mlpackage" else { throw ModditError.compute("[coreml] cannot place it") }
        var placement = Placement(package: package.path, function: function.name)
        for device in ["GPU", "GPU", nil] { placement.count("ios18.linear", on: device) }
        placement.count("ios17.topk", on: "CPU")
        placement.count("const", on: nil)
        return placement
    }
}

/// A meter whose n-th interval is 2 n + 1 sixty-fourths of a second.
func makeMeter() -> TrialMeter {
    let calls = Notes<Void>()
    return TrialMeter(
        now: {
            calls.add(())
            let count = Double(calls.items.count - 1)
            return count * count / 64
        },
        peak: { ProcessPeak(resident: 1_000_000 * (calls.items.count + 1), footprint: 1_500_000) })
}
