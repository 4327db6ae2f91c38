import Foundation
import Testing

@testable import ModditCore
@testable import ModditCoreML
@testable import moddit_cli

/// The whole command, with a machine and a runtime that pretend.
struct BenchmarkTests {
    /// What happened on a machine that pretends.
    private struct Events: Sendable {
        let jobs = Notes<TrialJob>()
        let notes = Notes<String>()
        let pauses = Notes<Double>()
    }

    private func host(
        _ events: Events, measure: (@Sendable (TrialJob) async throws -> TrialReport)? = nil
    ) -> BenchmarkHost {
        BenchmarkHost(
            check: {},
            machine: {
                BenchmarkMachine(
                    chip: "Apple M3 Pro", model: "Mac15,6", gpuCores: 18, cpuCores: 12, memoryBytes: 18 << 30,
                    system: "macOS 26.1")
            },
            conditions: {
                BenchmarkConditions(
                    powerSource: .battery, isLowPower: false, thermalState: .fair,
                    load: Double(events.jobs.items.count) / 4)
            },
            libraries: { ["moddit": PictureMetadata.packageVersion, "coreml": "3500.1"] },
            commit: { "0123456789abcdef0123456789abcdef01234567" },
            now: { Date(timeIntervalSince1970: 1_764_115_200) },
            pause: { events.pauses.add($0) },
            measure: measure ?? { job in
                events.jobs.add(job)
                return try await play(job)
            },
            note: { events.notes.add($0) })
    }

    private func run(_ words: [String], on host: BenchmarkHost) async throws -> String {
        try await Benchmark.run(Arguments(words, for: Benchmark.command), on: host)
    }

    /// Of `python -m pytest tests/swift/test_benchmark_record.py`, which reads it.
    @Test func theRecordIsTheGoldenOne() async throws {
        let (bundle, folder, events) = (try writeBundle("routed"), try makeFolder(), Events())
        defer { [bundle, folder].forEach { try? FileManager.default.removeItem(at: $0) } }
        let file = folder.appendingPathComponent("new/record.json")
        let words = ["--size", "32x32", "--trials", "2", "--predictions=2", "--delay", "1.5", "--json", file.path]
        let link = folder.appendingPathComponent("bundle")  // the record has the folder's name
        try FileManager.default.createSymbolicLink(at: link, withDestinationURL: bundle)
        let table = try await run(["--model", link.path] + words, on: host(events))
        let text = try String(contentsOf: file, encoding: .utf8)
            .replacingOccurrences(of: link.path, with: "bundle")
        let golden = repository.appendingPathComponent("tests/shared/coreml-benchmark.json")
        let wanted = try? String(contentsOf: golden, encoding: .utf8)
        let made = URL(fileURLWithPath: "/tmp/coreml-benchmark.json")
        if text != wanted { try Data(text.utf8).write(to: made) }
        #expect(text == wanted, "read the difference, then copy \(made.path) to \(golden.path)")

        #expect(events.pauses.items == Array(repeating: 1.5, count: 43))
        #expect(events.jobs.items.allSatisfy { !FileManager.default.fileExists(atPath: $0.cache.path) })
        #expect(Set(events.jobs.items.map(\.cache)).count == 22)
        let names = events.jobs.items.filter { $0.kind == .cold }.map { "\($0.package) \($0.function)" }
        #expect(names.count == 22 && names.prefix(11) == names.suffix(11).reversed()[...])
        #expect(events.jobs.items.map(\.kind) == (0..<22).flatMap { _ in [FunctionTrial.Kind.cold, .cached] })
        #expect(events.notes.items.first == "1/44 text_encoder/encode, cpuAndGPU, cold")
        let warning = "warning: no placement of VAEEncoder.mlpackage, px32x32: [coreml] cannot place it"
        #expect(events.notes.items.filter { $0 == warning }.count == 2)
        #expect(table.hasPrefix("Apple M3 Pro, 18 GPU cores, 18 GB, macOS 26.1\nwarning: measured on battery, thermal"))
        #expect(
            table.contains(
                """

                text_encoder/encode                   cpuAndGPU  0.01562      0.01562        0.07812  0.1719  1.5      \
                CPU 1, GPU 2, unknown 1

                """))
        #expect(table.hasSuffix("unknown"))
    }

    @Test func nothingIsMeasuredForARecordThatCannotBeWritten() async throws {
        let (bundle, folder, events) = (try writeBundle("dense"), try makeFolder(), Events())
        defer { [bundle, folder].forEach { try? FileManager.default.removeItem(at: $0) } }
        let file = folder.appendingPathComponent("record.json")
        try Data("old".utf8).write(to: file)
        let words = ["--model", bundle.path, "--trials=1", "--json"]
        let wanted = "[output] \(file.path) exists; choose another name or allow it with --overwrite"
        await #expect(throws: ModditError.outputExists(wanted)) { try await run(words + [file.path], on: host(events)) }
        await #expect(throws: ModditError.outputExists("[output] \(folder.path) is a folder; choose another name")) {
            try await run(words + [folder.path, "--overwrite"], on: host(events))
        }
        await #expect(throws: ModditError.self) {
            try await run(words + [file.path + "/record.json"], on: host(events))
        }
        #expect(events.jobs.items.isEmpty)
        #expect(try String(contentsOf: file, encoding: .utf8) == "old")
        _ = try await run(words + [file.path, "--overwrite"], on: host(events))
        #expect(try String(contentsOf: file, encoding: .utf8).hasPrefix("{\n \"arms\": ["))
    }

    @Test func aTrialThatFailsLeavesNothing() async throws {
        let (bundle, folder, events) = (try writeBundle("dense"), try makeFolder(), Events())
        defer { [bundle, folder].forEach { try? FileManager.default.removeItem(at: $0) } }
        let words = ["--model", bundle.path, "--json", folder.appendingPathComponent("record.json").path]
        let failure = ModditError.compute("[coreml] cannot load it")
        await #expect(throws: failure) {
            _ = try await run(
                words,
                on: host(events) { job in
                    events.jobs.add(job)
                    if events.jobs.items.count == 4 { throw failure }
                    return try await play(job)
                })
        }
        #expect(events.jobs.items.count == 4)
        #expect(events.jobs.items.allSatisfy { !FileManager.default.fileExists(atPath: $0.cache.path) })
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder.path).isEmpty)
    }

    @Test func whatCannotBeMeasured() async throws {
        let (bundle, events) = (try writeBundle("routed"), Events())
        defer { try? FileManager.default.removeItem(at: bundle) }
        let size = "[benchmark] no functions for 8x8 pixels; the bundle has sizes 32x32, 32x64"
        await #expect(throws: ModditError.missing(size)) {
            try await run(["--model", bundle.path, "--size=8x8"], on: host(events))
        }
        let many =
            "[benchmark] 19 functions in 100 trials are 3800 processes, want at most 1000; ask for fewer --trials or one "
            + "--size"
        await #expect(throws: ModditError.valueRange(many)) {
            try await run(["--model", bundle.path, "--trials=100"], on: host(events))
        }
        #expect(events.jobs.items.isEmpty)
    }

    @Test func choices() throws {
        let read = { (words: [String]) in
            try Benchmark.Choices(Arguments(["--model", "x"] + words, for: Benchmark.command))
        }
        let found = try read([
            "--size", "32x64", "--size=8x8", "--size=32x64", "--compute-units", "all", "--compute-units=cpuOnly",
        ])
        #expect(found.sizes == [PictureSize(height: 32, width: 64), PictureSize(height: 8, width: 8)])
        #expect(found.units == [.all, .cpuOnly])
        #expect(found.json["sizes"] == .string("32x64 8x8") && found.json["compute_units"] == .string("all cpuOnly"))
        for words in [
            ["--size", "32"], ["--size=0x8"], ["--size=8x8x8"], ["--size=-8x8"], ["--size=x"], ["--trials=0"],
            ["--predictions=10001"], ["--delay=3601"], ["--delay=-1"], ["--compute-units=npu"], ["--json"],
        ] {
            #expect(throws: UsageError.self, "\(words)") { try read(words) }
        }
    }

    /// Without Core ML that is one line; with it, there is no such bundle.
    @Test func exitStatus() async {
        #expect(await CLI.run(["benchmark", "--help"]) == 0)
        #expect(await CLI.run(["benchmark"]) == 2)
        #expect(await CLI.run(["benchmark", "--model", "/absent"]) == 1)
        #expect(await CLI.run(["benchmark-trial", "--model", "/absent"]) == 2)
        #expect(!CLI.help.contains("benchmark-trial"))
    }
}

/// Does a job in this process.
private func play(_ job: TrialJob) async throws -> TrialReport {
    let bundle = try ModelBundle(folder: URL(fileURLWithPath: job.model))
    let runner = FakeCoreML(bundle: bundle, cache: try CompiledModelCache(folder: job.cache))
    let report = try await BenchmarkTrial.measure(job, bundle, runner, meter: makeMeter())
    return try TrialReport(Data(report.text.utf8))  // as between two processes
}
