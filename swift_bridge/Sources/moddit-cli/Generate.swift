import Foundation
import ModditCore
import ModditCoreML

/// `moddit-cli generate`: a picture of a prompt, with Core ML.
enum Generate {
    static let command = Command(
        name: "generate", summary: "Generate a picture with Core ML.", argument: nil,
        options: [
            .bundle, Option(name: "prompt", value: "TEXT", help: "What to draw."),
            Option(name: "negative-prompt", value: "TEXT", help: "What to avoid.  [default: nothing]"),
            Option(name: "seed", value: "N", help: "The same noise as in the Python runtimes.  [default: 0]"),
            PictureOptions.steps,
            Option(
                name: "guidance-scale", value: "X",
                help: "1 or less turns guidance off.  [default: \(Request.defaultGuidanceScale)]"),
            PictureOptions.sampler,
        ] + PictureOptions.size + [
            .computeUnits,
            Option(name: "reduce-memory", value: nil, help: "Keep one part of the model in memory at a time."),
            Option(name: "output", value: "FILE", help: "PNG to write.  [default: picture.png]"),
            Option(name: "overwrite", value: nil, help: "Replace a file that exists."), .json,
        ])

    static func run(_ arguments: Arguments) async throws -> String {
        let request = try request(arguments)
        let options = CoreMLOptions(
            computeUnits: try arguments.choice("compute-units"),
            reducesMemory: arguments.flags.contains("reduce-memory"))
        let folder = URL(fileURLWithPath: try arguments.required(Option.bundle.name))
        let output = arguments.values["output"] ?? "picture.png"
        guard output.lowercased().hasSuffix(".png") else {
            throw UsageError(message: "option --output = '\(output)', want a name that ends in .png")
        }
        let overwrites = arguments.flags.contains("overwrite")
        let pipeline = try Pipeline.open(folder: folder, options: options, report: note)
        try checkOutput(output, overwrites)
        let start = ContinuousClock.now
        let picture = try await pipeline.generate(request) { note($0, most: pipeline.manifest.spec.textTokens) }
        let seconds: Double = (ContinuousClock.now - start) / .seconds(1)
        try checkOutput(output, overwrites)
        try save(try picture.png(), output)
        guard arguments.flags.contains("json") else { return output }
        return JSON.object([
            "path": .string(output), "seconds": .number(seconds), "metadata": .string(picture.metadata.json),
        ]).text
    }

    private static func request(_ arguments: Arguments) throws(UsageError) -> Request {
        var request = Request(prompt: try arguments.required("prompt"))
        request.negativePrompt = arguments.values["negative-prompt"] ?? ""
        request.seed = try arguments.integer("seed", in: Request.seeds) ?? 0
        request.steps = try arguments.integer("steps", in: 1...Bounds.timesteps) ?? request.steps
        request.guidanceScale = try arguments.number("guidance-scale") ?? request.guidanceScale
        request.size = try CLI.size(arguments)
        request.sampler = try arguments.choice("sampler")
        return request
    }

    private static func checkOutput(_ path: String, _ overwrites: Bool) throws(ModditError) {
        guard overwrites || !FileManager.default.fileExists(atPath: path) else {
            throw .outputExists("[output] \(path) exists; choose another name or allow it with --overwrite")
        }
    }

    private static func save(_ data: Data, _ path: String) throws(ModditError) {
        let url = URL(fileURLWithPath: path)
        do {
            try FileManager.default.createDirectory(
                at: url.deletingLastPathComponent(), withIntermediateDirectories: true)
            try data.write(to: url, options: .atomic)
        } catch {
            throw .storage("[output] cannot write \(path): \(error.localizedDescription)")
        }
    }

    private static func note(_ event: CoreMLEvent) {
        switch event {
        case .warning(let text): CLI.note("warning: \(text)")
        case .loaded(let load):
            let compiled = String(format: "compiled in %.1f s", load.compileSeconds)
            let origin = load.origin == .cache ? "from the cache" : compiled
            CLI.note(
                "\(load.package.printable), function \(load.function): \(origin), "
                    + String(format: "loaded in %.1f s", load.loadSeconds))
        }
    }

    private static func note(_ stage: Stage, most: Int) {
        switch stage {
        case .encoded(let tokens) where tokens.contains { $0 >= most }:
            CLI.note("warning: a text fills all \(most) tokens; what is beyond them is ignored")
        case .step(let step):
            CLI.note("step \(step.index + 1)/\(step.total), timestep \(step.timestep), \(step.function)")
        default: break
        }
    }
}
