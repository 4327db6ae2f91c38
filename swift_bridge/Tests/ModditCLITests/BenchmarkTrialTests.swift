import Foundation
import Testing

@testable import ModditCore
@testable import ModditCoreML
@testable import moddit_cli

struct BenchmarkTrialTests {
    private let job = TrialJob(
        kind: .cached, model: "a b=c", package: "Text.mlpackage", function: "encode", units: .cpuOnly, predictions: 3,
        cache: URL(fileURLWithPath: "/cache"))

    @Test func aJobSurvivesItsWords() throws {
        let words = BenchmarkTrial.words(job, report: "/x y/report")
        let (found, report) = try BenchmarkTrial.read(
            Arguments(Array(words.dropFirst()), for: BenchmarkTrial.command))
        #expect(words.first == "benchmark-trial" && found == job && report == "/x y/report")
    }

    /// A load that is not what its stage says is no measurement.
    @Test func loadsAreOfTheirKind() async throws {
        let folder = try writeBundle("labels")
        defer { try? FileManager.default.removeItem(at: folder) }
        let bundle = try ModelBundle(folder: folder)
        let cache = try CompiledModelCache(folder: folder.appendingPathComponent("cache"))
        let runner = FakeCoreML(bundle: bundle, cache: cache)
        let trial = { (kind: FunctionTrial.Kind) async throws -> TrialReport in
            let trial = try FunctionTrial(
                kind, path: "VAEDecoder.mlpackage", function: "px32x32", in: bundle.graphs(), predictions: 1)
            return try await trial.run(runner, bundle.manifest.spec, meter: makeMeter())
        }
        await #expect(throws: ModditError.self) { try await trial(.cached) }  // which compiles it
        #expect(try await trial(.cached).stages.map(\.name) == [.loadCached, .firstPredict, .predict])
        let wanted = "[benchmark] VAEDecoder.mlpackage, px32x32: the cache was not empty; run it again"
        await #expect(throws: ModditError.compute(wanted)) { try await trial(.cold) }
    }

    /// All inputs that functions of the test bundles take can be made, and are noise where numbers matter.
    @Test(arguments: ["routed", "dense", "labels", "chain"])
    func everyFunctionIsMeasured(name: String) async throws {
        let folder = try writeBundle(name)
        defer { try? FileManager.default.removeItem(at: folder) }
        let bundle = try ModelBundle(folder: folder)
        let functions = try bundle.manifest.measuredFunctions(bundle.graphs(), sizes: [], units: [.all, .cpuOnly])
        let count = try bundle.graphs().packages.values.joined().map(\.functions.count).reduce(0, +)
        #expect(functions.count == 2 * count)
        #expect(Set(functions.map { "\($0.arm.name) \($0.arm.units)" }).count == functions.count)
        for (index, item) in functions.enumerated() {
            let cache = folder.appendingPathComponent("\(index)")
            let runner = FakeCoreML(bundle: bundle, cache: try CompiledModelCache(folder: cache))
            for kind in FunctionTrial.Kind.allCases {
                let trial = try FunctionTrial(
                    kind, path: item.package.path, function: item.function.name, in: bundle.graphs(), predictions: 2)
                _ = try await trial.run(runner, bundle.manifest.spec, meter: makeMeter())
            }
        }
    }

    @Test func armsOfSeveralPackages() throws {
        let folder = try writeBundle("chain")
        defer { try? FileManager.default.removeItem(at: folder) }
        let bundle = try ModelBundle(folder: folder)
        let arms = try bundle.manifest.measuredFunctions(bundle.graphs(), sizes: [], units: [.all]).map(\.arm)
        let parts = arms.filter { $0.name.hasPrefix("transformer") }
        #expect(
            parts.map(\.name) == [
                "transformer1of2/px32x32_batch2_region0_1", "transformer1of2/px32x32_batch2_region2",
                "transformer2of2/px32x32_batch2_region0_1", "transformer2of2/px32x32_batch2_region2",
            ])
        #expect(parts.allSatisfy { $0.bits == 4 && $0.keptTokens == nil && $0.flops == nil && $0.tokens == 16 })
        #expect(arms.first?.bits == nil && arms.first?.size == nil && arms.first?.tokens == 12)
        #expect(arms.last?.name == "vae_encoder/px32x32" && arms.last?.tokens == nil)
    }

    @Test func aReportThatIsDamagedIsRefused() {
        let stage =
            #"{"name": "predict", "seconds": [1], "runtime_peak_bytes": null, "process_peak_bytes": 1, "#
            + #""footprint_peak_bytes": null}"#
        let text = #"{"stages": [\#(stage)], "operations": {"GPU": 1}, "warnings": []}"#
        #expect(throws: Never.self) { try TrialReport(Data(text.utf8)) }
        for (old, new) in [("predict", "step"), ("[1]", "[]"), ("1}", "-1}"), ("\"warnings\"", "\"x\""), ("}", "")] {
            let changed = text.replacingOccurrences(of: old, with: new)
            #expect(throws: ModditError.self, "\(changed)") { try TrialReport(Data(changed.utf8)) }
        }
    }

    /// Programs that stand in for this one.
    @Test(arguments: [
        ("echo noise >&2; echo 'error: [coreml] cannot load it' >&2; exit 1", "[coreml] cannot load it"),
        ("exit 3", "[benchmark] a trial ended with status 3"),
        (
            "kill -9 $$",
            "[benchmark] signal 9 ended a trial of Text.mlpackage, encode; a smaller --size or other --compute-units may "
                + "need less memory"
        ),
    ])
    func aProcessThatFails(script: String, message: String) throws {
        let program = try write(script)
        defer { try? FileManager.default.removeItem(at: program) }
        #expect(throws: ModditError.compute(message)) { try Program.measure(job, program: program) }
    }

    @Test func aProcessThatSucceeds() throws {
        let report = TrialReport(
            stages: [.init(name: .loadCold, seconds: [0.1], peak: ProcessPeak(resident: 1, footprint: nil))],
            warnings: ["x"])
        let program = try write(
            """
            echo what a framework prints
            for word; do case $word in --report=*) printf '%s' '\(report.text)' > "${word#--report=}" ;; esac; done
            """)
        defer { try? FileManager.default.removeItem(at: program) }
        #expect(try Program.measure(job, program: program) == report)
    }

    @Test func aProgramThatIsNotThere() {
        #expect(throws: ModditError.self) {
            try Program.measure(job, program: URL(fileURLWithPath: "/absent"))
        }
    }

    /// The program itself, beside the tests, where there is no Core ML.
    @Test(.enabled(if: Self.program != nil)) func thisProgramSaysInOneLineThatItCannot() throws {
        let wanted = "[coreml] Core ML is not available on this system; pictures need macOS 15 or iOS 18"
        #expect(throws: ModditError.compute(wanted)) { try Program.measure(job, program: #require(Self.program)) }
    }

    private static var program: URL? {
        #if canImport(CoreML)
        return nil
        #else
        let url = Bundle.main.executableURL?.deletingLastPathComponent().appendingPathComponent("moddit-cli")
        return url.flatMap { FileManager.default.isExecutableFile(atPath: $0.path) ? $0 : nil }
        #endif
    }

    private func write(_ script: String) throws -> URL {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-test-\(UUID().uuidString)")
        try Data("#!/bin/sh\n\(script)\n".utf8).write(to: url)
        try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: url.path)
        return url
    }

    /// Where there is Git, in what is no repository and in one.
    @Test func theCommitIsOfTheFolderThatTheProgramIsIn() throws {
        let folder = try makeFolder()
        defer { try? FileManager.default.removeItem(at: folder) }
        #expect(Program.commit(of: folder, program: URL(fileURLWithPath: "/bin/sh")) == nil)
        #expect(Program.commit(of: folder, program: folder.appendingPathComponent(".build/moddit-cli")) == nil)
        let found = Program.commit(of: repository, program: repository.appendingPathComponent(".build/moddit-cli"))
        #expect(found?.prefix(40).allSatisfy(\.isHexDigit) ?? true)
    }

    @Test func thisMachine() {
        let machine = BenchmarkMachine.this()
        #expect(machine.cpuCores >= 1 && machine.memoryBytes > 1 << 28 && !machine.chip.isEmpty)
        #expect(["Linux ", "macOS "].contains { machine.system.hasPrefix($0) })
        #expect((ProcessPeak.this().bytes ?? 0) > 1 << 20)
        #expect(TrialMeter.this.peak().bytes != nil)
    }
}
