import Foundation
import ModditCore
import ModditCoreML

/// What a benchmark asks of the machine that it runs on; a test plays another one.
struct BenchmarkHost: Sendable {
    /// Fails where nothing can be measured.
    var check: @Sendable () throws -> Void
    /// What does not change meanwhile.
    var machine: @Sendable () -> BenchmarkMachine
    /// What may slow it down now.
    var conditions: @Sendable () -> BenchmarkConditions
    /// What can change a time, to its version.
    var libraries: @Sendable () -> [String: String]
    /// Of this package's repository.
    var commit: @Sendable () -> String?
    /// The time of day.
    var now: @Sendable () -> Date
    /// Waits for some seconds.
    var pause: @Sendable (Double) async throws -> Void
    /// Does a job in a process of its own.
    var measure: @Sendable (TrialJob) async throws -> TrialReport
    /// Tells of progress.
    var note: @Sendable (String) -> Void
}

extension BenchmarkHost {
    /// This machine.
    static let this = BenchmarkHost(
        check: { try CoreMLRunner.checkAvailable() }, machine: { .this() }, conditions: { .now() }, libraries: versions,
        commit: { Program.commit }, now: { Date() }, pause: { try await Task.sleep(for: .seconds($0)) },
        measure: { try Program.measure($0) }, note: { CLI.note($0) })

    @Sendable private static func versions() -> [String: String] {
        var found = [
            "moddit": PictureMetadata.packageVersion, "system": ProcessInfo.processInfo.operatingSystemVersionString,
        ]
        found["coreml"] = CoreMLRunner.version
        return found
    }
}

/// This program, and others that it starts.
enum Program {
    /// Does a job in another process of this program.
    ///
    /// - Throws: `ModditError.compute` with the last line that the process wrote, if it fails.
    static func measure(_ job: TrialJob) throws(ModditError) -> TrialReport {
        guard let program = Bundle.main.executableURL else {
            throw .unsupported("[benchmark] the system does not say where this program is")
        }
        return try measure(job, program: program)
    }

    static func measure(_ job: TrialJob, program: URL) throws(ModditError) -> TrialReport {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("moddit-trial-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: folder) }
        let (report, errors) = (folder.appendingPathComponent("report"), folder.appendingPathComponent("errors"))
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try Data().write(to: errors)
            let end = try run(
                program, BenchmarkTrial.words(job, report: report.path), errors: FileHandle(forWritingTo: errors))
            if end.isSignal {
                throw ModditError.compute(
                    "[benchmark] signal \(end.status) ended a trial of \(job.package), \(job.function); a smaller "
                        + "--size or other --compute-units may need less memory")
            }
            guard end.status == 0 else {
                let lines = (try? String(contentsOf: errors, encoding: .utf8))?.split(separator: "\n") ?? []
                throw ModditError.compute(message(lines.last.map { String($0) }, status: end.status))
            }
            return try TrialReport(Data(contentsOf: report))
        } catch let error as ModditError {
            throw error
        } catch {
            throw .storage("[benchmark] cannot run a trial: \(error.localizedDescription)")
        }
    }

    private static func message(_ line: String?, status: Int32) -> String {
        guard let line else { return "[benchmark] a trial ended with status \(status)" }
        let mark = "error: "
        return line.hasPrefix(mark) ? String(line.dropFirst(mark.count)) : line
    }

    /// The commit of the repository that this program was built in, "-dirty" if that was changed; nil if the program
    /// lies elsewhere.
    static var commit: String? {
        let file = URL(fileURLWithPath: #filePath)  // Sources/moddit-cli/ in the package
        let package = file.deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        return Bundle.main.executableURL.flatMap { commit(of: package, program: $0) }
    }

    static func commit(of package: URL, program: URL) -> String? {
        let (folder, place) = (package.resolvingSymlinksInPath(), program.resolvingSymlinksInPath())
        guard place.pathComponents.starts(with: folder.pathComponents),
            let head = git(folder, "rev-parse", "--verify", "HEAD"), head.status == 0,
            let changes = git(folder, "diff", "--quiet", "HEAD"), [0, 1].contains(changes.status)
        else { return nil }
        return changes.status == 0 ? head.text : head.text + "-dirty"
    }

    private static func git(_ folder: URL, _ words: String...) -> (status: Int32, text: String)? {
        let output = Pipe()  // for little: nobody reads before the end
        let end = try? run(
            URL(fileURLWithPath: "/usr/bin/env"), ["git", "-C", folder.path] + words, output: output,
            errors: .nullDevice)
        guard let end, !end.isSignal else { return nil }
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        return (end.status, text.trimmingCharacters(in: .whitespacesAndNewlines))
    }

    /// Runs a program to its end.
    private static func run(
        _ program: URL, _ words: [String], output: Any = FileHandle.nullDevice, errors: FileHandle
    ) throws -> (status: Int32, isSignal: Bool) {
        #if os(macOS) || os(Linux)
        let process = Process()
        process.executableURL = program
        process.arguments = words
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        process.waitUntilExit()
        return (process.terminationStatus, process.terminationReason == .uncaughtSignal)
        #else
        throw ModditError.unsupported("[benchmark] this system runs no other programs; measure on a Mac")
        #endif
    }
}
