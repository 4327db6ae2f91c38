import Foundation
@testable import ModditCore
import Testing

@testable import ModditCoreML

#if canImport(CoreML)
private let hasCoreML = true
#else
private let hasCoreML = false
#endif

/// A bundle to run, where there is Core ML: MODDIT_BUNDLE names its folder.
private let bundle = ProcessInfo.processInfo.environment["MODDIT_BUNDLE"].map { URL(fileURLWithPath: $0) }

struct CoreMLTests {
    @Test(.enabled(if: !hasCoreML)) func noCoreMLIsOneClearError() async {
        let wanted = "[coreml] Core ML is not available on this system; pictures need macOS 15 or iOS 18"
        let folder = URL(fileURLWithPath: "/absent")
        #expect(throws: ModditError.unsupported(wanted)) { try Pipeline.open(folder: folder) }
        await #expect(throws: ModditError.unsupported(wanted)) { try await Pipeline.prewarm(folder: folder) }
    }

    @Test(.enabled(if: !hasCoreML)) func noImageIOIsOneClearError() {
        let wanted =
            "[image] /a.png: this system has no ImageIO to read pictures with; use macOS 15 or iOS 18"
        #expect(throws: ModditError.unsupported(wanted)) { try PixelImage(contentsOf: URL(fileURLWithPath: "/a.png")) }
    }

    /// A file that goes out and comes in: nobody has run this yet.
    @Test(.enabled(if: hasCoreML)) func picturesAreReadAsTheyWereWritten() throws {
        let pixels: [UInt8] = [255, 0, 0, 255, 0, 255, 0, 255, 0, 0, 255, 255, 9, 99, 199, 255]
        let picture = try PixelImage(width: 2, height: 2, rgba: pixels)
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString).png")
        defer { try? FileManager.default.removeItem(at: file) }
        try PNG.encode(picture).write(to: file)
        #expect(try PixelImage(contentsOf: file) == picture)
        #expect(throws: ModditError.self) { try PixelImage(contentsOf: URL(fileURLWithPath: "/absent.png")) }
    }

    @Test func missingBundle() {
        #expect(throws: ModditError.self) { try Pipeline.open(folder: URL(fileURLWithPath: "/absent")) }
    }

    @Test func computeUnitsHaveCoreMLsNames() {
        #expect(Set(ComputeUnits.allCases.map(\.coreML)).count == ComputeUnits.allCases.count)
    }

    @Test(.enabled(if: hasCoreML)) func tensorsSurviveCoreML() throws {
        let numbers: [Tensor.Numbers] = [.float32([1, 2, 3, 4]), .float16([1, 2, 3, 4]), .int32([1, 2, 3, 4])]
        for item in numbers {
            let tensor = try Tensor(item, shape: [1, 2, 2])
            #expect(try Tensor(tensor.multiArray()) == tensor)
            let held = try CoreMLArray(tensor.multiArray())
            #expect(try held.shape == [1, 2, 2] && held.dtype == tensor.dtype && held.tensor() == tensor)
            #expect(try held.coreML === held.array)  // what a function gave goes into the next one as it is
        }
    }

    /// Twice the same picture; the second time every compiled model is in the cache.
    @Test(.enabled(if: hasCoreML && bundle != nil)) func picturesRepeat() async throws {
        let cache = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: cache) }
        let (first, loads) = try await draw(CoreMLOptions(verifiesHashes: true, cacheFolder: cache))
        #expect(loads.contains { $0.origin == .compiled })
        let (second, others) = try await draw(CoreMLOptions(reducesMemory: true, cacheFolder: cache))
        #expect(others.allSatisfy { $0.origin == .cache && $0.compileSeconds == 0 })
        #expect(first == second)
    }

    /// A process that finds nothing compiled, and one that finds it: nobody has run this yet.
    @Test(.enabled(if: hasCoreML && bundle != nil)) func functionsAreMeasured() async throws {
        let cache = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: cache) }
        let bundle = try ModelBundle(folder: try #require(bundle))
        let graphs = try bundle.graphs()
        let item = try #require(bundle.manifest.measuredFunctions(graphs, sizes: [], units: [.cpuOnly]).first)
        let meter = TrialMeter(
            now: { Date().timeIntervalSinceReferenceDate }, peak: { ProcessPeak(resident: nil, footprint: nil) })
        var reports: [TrialReport] = []
        for kind in FunctionTrial.Kind.allCases {
            let runner = try CoreMLRunner(bundle, options: CoreMLOptions(computeUnits: .cpuOnly, cacheFolder: cache))
            let trial = try FunctionTrial(
                kind, path: item.package.path, function: item.function.name, in: graphs, predictions: 2)
            reports.append(try await trial.run(runner, bundle.manifest.spec, meter: meter))
        }
        #expect(reports.flatMap(\.stages).map(\.name) == TrialReport.Stage.Name.allCases)
        #expect(reports.last?.operations["CPU"] != nil)
    }

    /// Whether Core ML heeds the function that its configuration names, which Apple does not say: nobody has run this yet.
    @Test(.enabled(if: hasCoreML && bundle != nil)) func placementsKnowEveryFunction() async throws {
        let cache = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: cache) }
        let bundle = try ModelBundle(folder: try #require(bundle))
        let runner = try CoreMLRunner(bundle, options: CoreMLOptions(computeUnits: .cpuOnly, cacheFolder: cache))
        for package in try bundle.graphs().packages.values.joined() {
            for function in package.functions {
                let placement = try await runner.model(package).place(function.name)
                #expect(placement.operations.values.contains { $0["CPU"] != nil }, "\(function.name)")
            }
        }
    }

    private func draw(_ options: CoreMLOptions) async throws -> (Data, [LoadReport]) {
        let (events, continuation) = AsyncStream.makeStream(of: CoreMLEvent.self)
        let pipeline = try Pipeline.open(folder: try #require(bundle), options: options) { continuation.yield($0) }
        let picture = try await pipeline.generate(Request(prompt: "a large red circle", steps: 4))
        continuation.finish()
        var loads: [LoadReport] = []
        for await event in events {
            if case .loaded(let load) = event { loads.append(load) }
        }
        return (try picture.png(), loads)
    }
}
